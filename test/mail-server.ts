/**
 * A mail provider on loopback for tests: Dovecot (IMAP) and Exim (SMTP), from Debian's packages
 * dovecot-imapd and exim4-daemon-light, with certificates of an authority of their own.
 *
 * Every call of `startMail` is an instance of its own, in its own folder and on free ports; several
 * run side by side. Both servers want root. Ends only the processes it started. (OpenSMTPD 6.8, as
 * Debian 12 has it, fails every TLS handshake with the OpenSSL 3 of the same release.)
 */
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync } from "node:fs";
import { renameSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Subprocess } from "bun";
import { ImapFlow } from "imapflow";

export const address = "claw@claw.test";
export const password = "pa:ss/w@rd%1";
export const authservId = "mx.claw.test";

/** Why the servers cannot run here, or null: what `test.skipIf` wants. */
export const missing: string | null =
  process.getuid?.() !== 0
    ? "not root"
    : (["/usr/sbin/dovecot", "/usr/sbin/exim4"].find((file) => !existsSync(file)) ?? null);

export type LetterParts = { from?: string; proof?: string; headers?: string; body?: string };

/** A mail to claw as the provider's own server hands it over; its Message-ID is m1@x.org. */
export function letter(number: number, parts: LetterParts = {}): string {
  const { from = "owner@x.org", proof = "dmarc=pass", headers = "X-None: 0", body } = parts;
  return [
    `Authentication-Results: ${authservId}; ${proof}`,
    `From: The Owner <${from}>\nTo: claw <${address}>`,
    `Subject: Mail ${number}\nMessage-ID: <m${number}@x.org>`,
    `${headers}\n\n${body ?? `words of ${number}`}`,
  ].join("\n");
}

if (missing !== null) console.error(`Tests with a mail server are skipped: ${missing}.`);

export type StoredMail = { uid: number; flags: string[]; raw: string };
export type MailServer = Awaited<ReturnType<typeof startMail>>;

/** Resolves when both answer. Mail for somebody else than `address` is in `received`. */
export async function startMail() {
  await using stack = new AsyncDisposableStack();
  const base = mkdtempSync(join(tmpdir(), "claw-mail-"));
  stack.defer(() => rmSync(base, { recursive: true, force: true }));
  chmodSync(base, 0o755);
  makeCertificates(base);
  const [imaps = 0, imap = 0, smtps = 0, smtp = 0] = freePorts(4);
  writeDovecot(base, imaps, imap);
  writeExim(base, smtps, smtp);
  const dovecotCommand = ["dovecot", "-F", "-c", `${base}/dovecot.conf`];
  const start = (command: string[], ports: number[]) => startServer(command, base, ports);
  let dovecot = await start(dovecotCommand, [imaps, imap]);
  stack.defer(() => end(dovecot));
  const exim = await start(["exim4", "-C", `${base}/exim.conf`, "-bdf"], [smtps, smtp]);
  stack.defer(() => end(exim));

  const user = `${encodeURIComponent(address)}:${encodeURIComponent(password)}`;
  const url = (scheme: string, host: string, port: number) => `${scheme}://${user}@${host}:${port}`;
  // `deaf`: neither server offers STARTTLS there, and IMAP has little more than it must. On 127.0.0.3 their certificate is another's.
  const [name, deaf] = ["localhost", "127.0.0.2"];
  const urls = {
    tls: { imap: url("imaps", name, imaps), smtp: url("smtps", name, smtps) },
    startTls: { imap: url("imap", name, imap), smtp: url("smtp", name, smtp) },
    plain: { imap: url("imap", deaf, imap), smtp: url("smtp", deaf, smtp) },
  };
  const caFile = `${base}/ca.pem`;
  const servers = stack.move();
  let delivered = 0;

  return {
    urls,
    ca: readFileSync(caFile, "utf8"),
    env: {
      EMAIL_ADDRESS: address,
      EMAIL_IMAP_URL: urls.tls.imap,
      EMAIL_SMTP_URL: urls.tls.smtp,
      EMAIL_AUTHSERV_ID: authservId,
      NODE_EXTRA_CA_CERTS: caFile,
    },
    /** Into INBOX or `.Sent`, as the provider's own MTA would; bytes as they are, text with CRLF. */
    async deliver(raw: string | Uint8Array, arrivedAt = new Date(), folder = ""): Promise<void> {
      delivered += 1;
      const file = `${Date.now()}.${delivered}_${process.pid}.test`;
      const bytes = typeof raw === "string" ? raw.replaceAll(/\r?\n/g, "\r\n") : raw;
      await Bun.write(`${base}/mail/tmp/${file}`, bytes);
      chmodSync(`${base}/mail/tmp/${file}`, 0o666);
      utimesSync(`${base}/mail/tmp/${file}`, arrivedAt, arrivedAt);
      renameSync(`${base}/mail/tmp/${file}`, `${base}/mail/${folder}/new/${file}`);
    },
    /** What a folder holds, by another client's eyes. */
    async mailbox(folder: string): Promise<StoredMail[]> {
      const tls = { ca: readFileSync(caFile, "utf8") };
      const auth = { user: address, pass: password };
      const server = { host: name, port: imaps, secure: true, auth, tls };
      await using client = new ImapFlow({ ...server, logger: false });
      await client.connect();
      const { exists } = await client.mailboxOpen(folder, { readOnly: true });
      const query = { uid: true, flags: true, source: true };
      const found = exists === 0 ? [] : await client.fetchAll("1:*", query);
      return found.map(({ uid, flags = [], source }) => {
        return { uid, flags: [...flags], raw: source?.toString() ?? "" };
      });
    },
    /** What arrived by SMTP for anybody else, oldest first. */
    received(): string[] {
      const folder = `${base}/others/new`;
      const files = existsSync(folder) ? readdirSync(folder).toSorted() : [];
      return files.map((file) => readFileSync(join(folder, file), "utf8"));
    },
    resetUidValidity(): void {
      const value = String(Math.floor(Date.now() / 1000) + 1000);
      const args = ["-c", `${base}/dovecot.conf`, "mailbox", "update", "--uid-validity", value];
      run(["doveadm", ...args, "-u", address, "INBOX"]);
    },
    stopImap: () => end(dovecot),
    async startImap(): Promise<void> {
      dovecot = await start(dovecotCommand, [imaps, imap]);
    },
    [Symbol.asyncDispose]: () => servers.disposeAsync(),
  };
}

/** The server and what it started, which would go on serving its clients. */
async function end(child: Subprocess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  process.kill(-child.pid, "SIGKILL");
  await child.exited;
}

function run(command: string[]): void {
  const { exitCode, stderr } = Bun.spawnSync(command);
  if (exitCode !== 0) throw new Error(`${command.join(" ")}: ${stderr.toString()}`);
}

/** Starts a server in the foreground; resolves when all its ports answer. */
async function startServer(command: string[], base: string, ports: number[]) {
  const log = Bun.file(`${base}/${command[0]}.log`);
  const stdio: ["ignore", typeof log, typeof log] = ["ignore", log, log];
  const child = Bun.spawn(command, { stdio, cwd: base, detached: true });
  const deadline = Date.now() + 10_000;
  for (const port of ports) {
    while (!(await answers(port))) {
      const isLate = child.exitCode !== null || Date.now() > deadline;
      if (isLate) await end(child);
      if (isLate) throw new Error(`${command[0]} does not start: ${await log.text()}`);
      await Bun.sleep(10);
    }
  }
  return child;
}

async function answers(port: number): Promise<boolean> {
  try {
    const socket = await Bun.connect({ hostname: "127.0.0.1", port, socket: { data() {} } });
    socket.end();
    return true;
  } catch {
    return false; // Not yet.
  }
}

const taken = new Set<number>();

/** Ports that nobody listens on, below those that outgoing connections get. */
function freePorts(count: number): number[] {
  const ports: number[] = [];
  while (ports.length < count) {
    const port = 12_000 + Math.floor(Math.random() * 20_000);
    if (taken.has(port) || !isFree(port)) continue;
    taken.add(port);
    ports.push(port);
  }
  return ports;
}

function isFree(port: number): boolean {
  try {
    Bun.listen({ hostname: "127.0.0.1", port, socket: { data() {} } }).stop(true);
    return true;
  } catch {
    return false; // Somebody else's.
  }
}

function makeCertificates(base: string): void {
  const key = ["-newkey", "rsa:2048", "-nodes", "-days", "2"];
  const openssl = (...args: string[]) => run(["openssl", "req", "-x509", ...key, ...args]);
  const ca = ["-keyout", `${base}/ca.key`, "-out", `${base}/ca.pem`, "-subj", "/CN=claw test CA"];
  openssl(...ca, "-addext", "basicConstraints=critical,CA:TRUE");
  const names = "subjectAltName=DNS:localhost,IP:127.0.0.1";
  const signed = ["-CA", `${base}/ca.pem`, "-CAkey", `${base}/ca.key`, "-addext", names];
  const end = ["-addext", "basicConstraints=critical,CA:FALSE", "-subj", "/CN=localhost"];
  openssl("-keyout", `${base}/key.pem`, "-out", `${base}/cert.pem`, ...signed, ...end);
  chmodSync(`${base}/key.pem`, 0o644); // Exim reads it as its own user.
}

/** A configuration in which ";" stands for a new line. */
const lines = (text: string) => text.replaceAll(/\s*;\s*/g, "\n");

function writeDovecot(base: string, imaps: number, imap: number): void {
  const folders = ["run", "state", "spool", "others", "mail/cur", "mail/new", "mail/tmp"];
  for (const folder of folders) mkdirSync(`${base}/${folder}`, { recursive: true });
  // Exim delivers as its own user when its configuration is not the installed one.
  for (const folder of ["mail", "others", "spool"])
    run(["chown", "-R", "Debian-exim:Debian-exim", `${base}/${folder}`]);
  const box = (use: string) => `mailbox ${use} {; auto = create; special_use = \\${use}; }`;
  const conf = `
base_dir = ${base}/run; state_dir = ${base}/state; log_path = ${base}/dovecot.err
protocols = imap; listen = 127.0.0.1, 127.0.0.2, 127.0.0.3; auth_failure_delay = 0
ssl = yes; ssl_cert = <${base}/cert.pem; ssl_key = <${base}/key.pem
local 127.0.0.2 {; ssl = no; protocol imap {; imap_capability = IMAP4rev1 SPECIAL-USE; }; }
disable_plaintext_auth = no; first_valid_uid = 1; mail_max_userip_connections = 100
mail_location = maildir:${base}/mail
passdb {; driver = static
  args = user=${address} password=${password.replaceAll("%", "%%")}; }
userdb {; driver = static
  args = uid=Debian-exim gid=Debian-exim home=${base}; }
namespace inbox {; inbox = yes; ${box("Sent")}; ${box("Drafts")}; }
service anvil {; unix_listener anvil-auth-penalty {; mode = 0; }; }
service imap-login {; inet_listener imap {; port = ${imap}; }
  inet_listener imaps {; port = ${imaps}; ssl = yes; }; }
`;
  writeFileSync(`${base}/dovecot.conf`, lines(conf));
}

/** Mail to nobody@ is refused for good, to later@ for now, to refused@ once it has been sent. */
function writeExim(base: string, smtps: number, smtp: number): void {
  const conf = `
spool_directory = ${base}/spool; log_file_path = ${base}/spool/%slog
pid_file_path = ${base}/exim.pid; primary_hostname = localhost; keep_environment =
local_interfaces = 127.0.0.1 : 127.0.0.2 : 127.0.0.3
daemon_smtp_ports = ${smtp} : ${smtps}; tls_on_connect_ports = ${smtps}
tls_certificate = ${base}/cert.pem; tls_privatekey = ${base}/key.pem
tls_advertise_hosts = \${if eq{$received_ip_address}{127.0.0.2}{}{*}}
acl_smtp_rcpt = rcpt; acl_smtp_data = data; deliver_drop_privilege = true
begin acl
rcpt:
  deny !authenticated = *; message = Log in first
  deny local_parts = nobody; message = No such person
  defer local_parts = later; message = Come again later
  accept
data:
  deny condition = \${if match{$recipients}{refused@}}; message = We do not like this mail
  accept
begin routers
own:
  driver = accept; domains = claw.test; local_parts = claw; transport = own
others:
  driver = accept; transport = others
begin transports
own:
  driver = appendfile; directory = ${base}/mail; create_directory = false; maildir_format
others:
  driver = appendfile; directory = ${base}/others; maildir_format; envelope_to_add
begin authenticators
plain:
  driver = plaintext; public_name = PLAIN; server_prompts = :; server_set_id = $auth2
  server_condition = \${if and{{eq{$auth2}{${address}}}{eq{$auth3}{${password}}}}}
`;
  writeFileSync(`${base}/exim.conf`, lines(conf));
}
