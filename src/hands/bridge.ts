/**
 * The inside end of the way out: programs of a sandbox know it as a proxy on 127.0.0.1, and it
 * carries their bytes to the host's socket, as they are, at the pace of the slower side.
 *
 * Invariant: it decides nothing and knows no secret. The socket is looked up by its path for every
 * connection, because the host may have died and come back; while it is away, clients are told so.
 */
import { connect, createServer, type Socket } from "node:net";
import { messageOf } from "../errors.ts";

/** Where the bridge listens. */
export const BRIDGE_PORT = 3128;

const CA_VARIABLES =
  "SSL_CERT_FILE CURL_CA_BUNDLE GIT_SSL_CAINFO REQUESTS_CA_BUNDLE PIP_CERT NODE_EXTRA_CA_CERTS " +
  "npm_config_cafile CARGO_HTTP_CAINFO AWS_CA_BUNDLE DENO_CERT";

/** What programs inside need: where it is, whom to trust, and variables for the secrets' places. */
export function envOf(
  caFile: string,
  token: string,
  placeholders: readonly string[],
): Record<string, string> {
  const proxy = `http://claw:${encodeURIComponent(token)}@127.0.0.1:${BRIDGE_PORT}`;
  const local = "localhost,127.0.0.1,::1";
  const env: Record<string, string> = { NO_PROXY: local, no_proxy: local, NODE_USE_ENV_PROXY: "1" };
  for (const name of ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"]) env[name] = proxy;
  for (const name of CA_VARIABLES.split(" ")) env[name] = caFile;
  for (const name of placeholders) env[name] = "put-in-by-the-host";
  return env;
}

/** What a client of a proxy understands, where nobody is there to speak for the host. */
const AWAY =
  "HTTP/1.1 502 Bad Gateway\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n" +
  "claw: the way out of this sandbox is closed for the moment; try again later.\n";

/** Listens on 127.0.0.1:`port`; `close` ends every connection too. */
export function openBridge(socketPath: string, port: number): { close(): void } {
  const open = new Set<Socket>();
  const server = createServer({ allowHalfOpen: true }, (client) => {
    const host = connect({ path: socketPath, allowHalfOpen: true });
    let isJoined = false;
    host.on("connect", () => {
      isJoined = true;
      client.pipe(host);
      host.pipe(client);
    });
    client.on("error", () => client.destroy());
    host.on("error", () => (isJoined ? host.destroy() : client.end(AWAY)));
    // What is on its way to the other side still gets there.
    client.on("close", () => host.destroySoon());
    host.on("close", () => client.destroySoon());
    for (const socket of [client, host]) open.add(socket.on("close", () => open.delete(socket)));
  });
  server.on("error", (error) => {
    console.error(`The way out cannot be offered on 127.0.0.1:${port}: ${messageOf(error)}`);
  });
  server.listen(port, "127.0.0.1");
  return {
    close() {
      server.close();
      for (const socket of open) socket.destroy();
    },
  };
}
