/** Rows about the way out: what a sandbox with routes can have sent, to whom, and with whose secret. */
import { Database } from "bun:sqlite";
import { expect } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { clean, expectNoCanary, python } from "./probes.ts";
import { bash, canaries, type Row, type World } from "./stage.ts";

/**
 * `ask(host, raw)`: CONNECT to a host, TLS with the sandbox's authority, the bytes as they are; prints
 * CONNECT's status where it is refused, else the answer's status and body.
 */
const ASK = `
import base64, os, re, socket, ssl
own = re.match(r"http://(.*)@", os.environ["HTTPS_PROXY"])[1]
context = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
context.check_hostname = False
def read(to):
  data = b""
  while True:
    try: more = to.recv(65536)
    except OSError: break
    if not more: break
    data += more
  return data.decode("latin1")
def connect(target, credentials=own):
  to = socket.create_connection(("127.0.0.1", 3128), 5)
  to.settimeout(5)
  login = "" if credentials is None else "Proxy-Authorization: Basic " + base64.b64encode(credentials.encode()).decode() + "\\r\\n"
  to.sendall(("CONNECT " + target + " HTTP/1.1\\r\\nHost: " + target + "\\r\\n" + login + "\\r\\n").encode("latin1"))
  head = b""
  while b"\\r\\n\\r\\n" not in head:
    more = to.recv(1)
    if not more: break
    head += more
  return to, head.decode("latin1").split(" ")[1] if b" " in head else "closed"
def ask(host, raw, credentials=own):
  to, status = connect(host + ":443", credentials)
  if status != "200": return print("CONNECT", status)
  try: secure = context.wrap_socket(to, server_hostname=host)
  except OSError: return print("no TLS")
  try: secure.sendall(raw.encode("latin1"))
  except OSError: return print("closed")
  print("answer", (read(secure) or "HTTP/1.1 closed").replace("\\r\\n", " | ").replace("\\n", " | ")[9:])
def request(line, *headers, body="{}", host="vault.example"):
  heads = [line + " HTTP/1.1", "Host: " + host, "Content-Length: " + str(len(body)), "Connection: close", *headers]
  return "\\r\\n".join(heads) + "\\r\\n\\r\\n" + body
`;
const way = (body: string) => python(ASK + body);
const lines = (seen: string[]) => (seen[0] ?? "").split("\n").filter((line) => line.trim());

/** What has come to the upstream since `mark` was taken. */
let mark = 0;
const since = ({ upstream }: World) => upstream.requests.slice(mark);
const markNow = ({ upstream }: World) => void (mark = upstream.requests.length);

export const networkRows: Row[] = [
  {
    id: "ATK-39",
    name: "who a client says it is, and the secret that is put in: once, and never shown",
    calls(world) {
      markNow(world);
      return [
        way(`
ask("vault.example", request("POST /v1/messages", "Authorization: Bearer mine", "x-api-key: mine", "X-Api-Key: mine2", "Cookie: a=b", "X-Auth-Token: mine", "Proxy-Authorization: Basic mine", "X-Forwarded-For: 127.0.0.1", "X-HTTP-Method-Override: DELETE", "X-Original-URL: /admin"))
ask("vault.example", request("POST /v1/messages", "Connection: x-api-key, close", "x-api-key: mine"))`),
        bash(
          `curl -sS -m 5 -H 'x-api-key: mine' -d '{}' https://vault.example/v1/messages; env | grep VAULT`,
        ),
      ];
    },
    holds(seen, world) {
      clean(seen);
      expect(since(world).map(({ method, url }) => `${method} ${url}`)).toEqual(
        Array(3).fill("POST /v1/messages"),
      );
      for (const { head } of since(world)) {
        expect(head).toContain(`["x-api-key","${canaries.vault}"]`); // the control: it went there
        expect(head).not.toMatch(/mine|cookie|forwarded|override|original/i);
      }
      expect(seen.join("")).toContain("*".repeat(canaries.vault.length));
      expect(seen.join("")).not.toContain("set-cookie");
      expect(seen[1]).toContain("VAULT_KEY=put-in-by-the-host");
    },
  },
  {
    id: "ATK-35",
    name: "hosts that look like the one that is allowed",
    calls(world) {
      markNow(world);
      const targets =
        "vault.example.evil.test:443 evil-vault.example:443 sub.vault.example:443 example:443 " +
        "vault.example@evil.test:443 evil.test@vault.example:443 vault.example:80 vault.example:8443 " +
        "vault.example vault.example:443:80 vault.example/@evil.test:443 xn--vult-hoa.example:443 " +
        "v\u00e0ult.example:443 vault.example..:443 .vault.example:443 vault%2eexample:443 *:443 :443 " +
        "http://vault.example:443 //vault.example:443 vault.example#evil.test:443";
      return [
        way(`
for target in ${JSON.stringify(targets.split(" "))}: print(connect(target)[1])
print([connect(target)[1] for target in ["VAULT.EXAMPLE:443", "vault.example.:443"]])
ask("vault.example", request("POST /v1/messages", host="evil.test"))
ask("vault.example", request("POST /v1/messages", "Host: evil.test"))`),
      ];
    },
    holds(seen, world) {
      const told = lines(seen);
      expect(told.slice(0, 21).filter((status) => !/^(4\d\d|closed)$/.test(status))).toEqual([]);
      expect(told[21]).toBe("['200', '200']"); // the same name in other letters
      for (const line of told.slice(22)) expect(line).toMatch(/^answer (400|403|closed)/);
      expect(since(world)).toEqual([]);
    },
  },
  {
    id: "ATK-37",
    name: "targets that parsers disagree about",
    calls(world) {
      markNow(world);
      const targets = [
        "//evil.test/v1/messages",
        "http://evil.test/v1/messages",
        "https://vault.example/v1/messages",
        "/\\\\evil.test/v1/messages",
        "\\\\\\\\evil.test",
        "/v1/%2e%2e/admin",
        "/v1/../admin",
        "/v1/messages/../../admin",
        "/v1/messages?x=1",
        "/v1/messages?",
        "/v1/messages#x",
        "/v1/messages;x",
        "/v1%2fmessages",
        "/v1/messages%00",
        "/v1/messages%0d%0aHost:%20evil.test",
        "/V1/MESSAGES",
        "/v1/messages/",
        "*",
        "v1/messages",
      ];
      // Here a pattern allows all below /repos/, as long as everybody takes it for being there.
      const outOfRepos = [
        "/repos/../user",
        "/repos/a/../../user",
        "/repos/%2e%2e/user",
        "/repos/.%2E/user",
        "/repos/..;/user",
        "/repos/..\\\\user",
        "/repos/%5c..%5cuser",
        "/repos/a%2f..%2f..%2fuser",
        "/repos/a%0d%0aX:1",
        "/repos/a#/../../user",
      ];
      return [
        way(`
for target in ${JSON.stringify(targets)}: ask("vault.example", request("POST " + target))
for target in ${JSON.stringify(outOfRepos)}: ask("code.example", request("GET " + target, host="code.example", body=""))
ask("vault.example", "POST /v1/messages HTTP/1.1\\r\\nHost: vault.example\\r\\nContent-Length: 2\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n0\\r\\n\\r\\nGET /admin HTTP/1.1\\r\\nHost: vault.example\\r\\n\\r\\n")
ask("vault.example", "POST /v1/messages HTTP/1.1\\r\\nHost: vault.example\\r\\nX: a\\r\\n evil: b\\r\\nContent-Length: 0\\r\\nContent-Length: 5\\r\\n\\r\\nGET /admin HTTP/1.1\\r\\n\\r\\n")
ask("vault.example", "POST /v1/messages HTTP/1.1\\nHost: vault.example\\nTransfer-Encoding: \\x0bchunked\\n\\n0\\n\\nGET /admin HTTP/1.1\\nHost: vault.example\\n\\n")`),
      ];
    },
    holds(seen, world) {
      expect(lines(seen).filter((line) => !/^answer (400|403|closed)/.test(line))).toEqual([]);
      expect(lines(seen)).toHaveLength(32);
      expect(since(world).map(({ url }) => url)).toEqual([]);
    },
  },
  {
    id: "ATK-38",
    name: "the right host, another method or path; and the other route's secret",
    calls(world) {
      markNow(world);
      return [
        way(`
for line in ["GET /v1/messages", "PUT /v1/messages", "DELETE /v1/messages", "post /v1/messages", "CONNECT evil.test:443", "TRACE /v1/messages", "POST /v1/files", "POST /v1/organizations", "POST /"]:
  ask("vault.example", request(line))
ask("code.example", request("POST /repos/a", host="code.example"))
ask("code.example", request("GET /user", host="code.example"))
ask("code.example", request("POST /v1/messages", host="vault.example"))
ask("code.example", request("GET /repos/a/b", host="code.example", body=""))`),
      ];
    },
    holds(seen, world) {
      clean(seen);
      expect(
        lines(seen)
          .slice(0, -1)
          .filter((line) => !/^answer (400|403|closed)/.test(line)),
      ).toEqual([]);
      expect(lines(seen).at(-1)).toStartWith("answer 200");
      expect(since(world)).toHaveLength(1);
      expect(since(world)[0]?.head).toContain(`Bearer ${canaries.code}`);
      expect(since(world)[0]?.head).not.toContain(canaries.vault);
    },
  },
  {
    id: "ATK-40",
    name: "ways back in: redirects, names that lead to this machine, addresses in every spelling",
    calls(world) {
      markNow(world);
      const addresses =
        "169.254.169.254 127.0.0.1 0x7f.1 2852039166 0177.0.0.1 127.1 [::1] [::ffff:a9fe:a9fe] 0 localhost.";
      return [
        bash(
          "curl -sS -L -m 5 -o /dev/null -w '%{http_code} %{num_redirects}\\n' https://code.example/repos/away 2>&1",
        ),
        way(`
for address in "${addresses}".split(): print(address, connect(address + ":443")[1])
ask("localhost", request("GET /", host="localhost", body=""))`),
        bash(
          `curl -sS -m 5 --noproxy '' -x "$HTTPS_PROXY" http://127.0.0.1:${world.upstream.port}/plain 2>&1; curl -sS -m 5 --noproxy '' http://vault.example/v1/messages -d x 2>&1`,
        ),
      ];
    },
    holds(seen, world) {
      expect(seen[0]).toMatch(/error|000|403/); // the redirect was passed on, and came to nothing
      const told = (seen[1] ?? "").split("\n").filter(Boolean);
      // Its own route names it: let through to be refused where it leads.
      expect(told.slice(0, 9).filter((line) => !/ (4\d\d|closed)$/.test(line))).toEqual([]);
      expect(told.at(-1)).toMatch(/^answer 403.*not public/);
      expect(seen[2]).toMatch(/https:\/\/ alone.*https:\/\/ alone/s);
      expect(since(world).map(({ url }) => url)).toEqual(["/repos/away"]);
    },
  },
  {
    id: "ATK-42",
    name: "another conversation's token, no token, and tokens that are nearly right",
    calls(world) {
      markNow(world);
      const { env } = JSON.parse(readFileSync(join(world.otherBox, "in/open.json"), "utf8"));
      const other = /http:\/\/(.*)@/.exec(env.HTTPS_PROXY)?.[1];
      return [
        way(`
for credentials in [${JSON.stringify(other)}, None, "", "claw:", "claw", own + "x", own[:-1], own.upper(), "x" + own, own.replace("claw", "root")]:
  print(connect("vault.example:443", credentials)[1])
print(connect("vault.example:443")[1], ${JSON.stringify(other)} != own)`),
      ];
    },
    holds(seen, world) {
      expect(lines(seen)).toEqual([...Array(10).fill("407"), "200 True"]);
      expect(since(world)).toEqual([]);
    },
  },
  {
    id: "ATK-43",
    name: "the upstream shows the secret in every form; and what the log and the audit keep",
    calls(world) {
      markNow(world);
      return [
        way(`
secret = os.environ["VAULT_KEY"]
ask("vault.example", request("POST /v1/messages", "Accept-Encoding: gzip, br", "Range: bytes=0-20", "If-Range: x"))
ask("vault.example", request("POST /v1/messages", "X-Big: " + "y" * 60000))
ask("vault.example", request("POST /v1/messages", body="z" * 200000))`),
      ];
    },
    holds(seen, { place, served }) {
      clean(seen);
      expect(seen[0]).toContain("answer 200");
      expect(seen[0]).toContain('["x-api-key","****');
      expectNoCanary(served.err());
      using db = new Database(join(place.clawHome, "claw.db"), { readonly: true });
      const rows = db.query("SELECT * FROM egress").all();
      expect(rows.length).toBeGreaterThan(20);
      expectNoCanary(JSON.stringify(rows));
      expect(JSON.stringify(rows)).not.toContain("evil: b");
    },
  },
  {
    id: "ATK-42",
    name: "a flood of connections takes one conversation's way, and nobody else's",
    calls: () => [
      way(`
all = []
for number in range(300):
  try: to = socket.create_connection(("127.0.0.1", 3128), 5); to.sendall(b"CONNECT " + b"x" * 100); all.append(to)
  except OSError: break
print(len(all))`),
    ],
    async holds(seen, { attack }) {
      expect(Number(seen[0])).toBeGreaterThan(64);
      const [answer] = await attack(
        [
          bash(
            "curl -sS -m 5 -o /dev/null -w '%{http_code}' -d '{}' https://vault.example/v1/messages",
          ),
        ],
        "DOWNER2",
      );
      expect(answer).toBe("200");
    },
  },
];
