/**
 * `claw service`: starts `claw serve` with the machine, as a systemd user unit or a launchd agent.
 *
 * Invariant: it writes one file and runs the commands it names; with --dry-run it does neither. No
 * secret is in that file: claw reads `$CLAW_HOME/secrets.env` by itself.
 */
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { basename, dirname, join, resolve } from "node:path";
import { clawHomeOf } from "../agent/session.ts";
import { UsageError } from "../errors.ts";
import { readSecrets } from "../serve/secrets.ts";
import { missingFor } from "../serve/missing.ts";

/** How a system keeps a program running: the file that says so, and the commands about it. */
type System = Record<"path" | "text", string> &
  Record<"install" | "uninstall" | "status", string[][]>;

export async function runService(argv: string[]): Promise<number> {
  const end = [...argv, "--"].indexOf("--");
  const own = argv.slice(0, end);
  const [action = "status", ...rest] = own.filter((arg) => arg !== "--dry-run");
  if (rest.length > 0 || !["install", "uninstall", "status"].includes(action))
    throw new UsageError(
      `claw service knows no "${rest[0] ?? action}": install, uninstall or status, with ` +
        "--dry-run; flags of claw serve go after --.",
    );
  const isDry = own.includes("--dry-run");
  const clawHome = resolve(clawHomeOf(process.env));
  const command = [process.execPath, "serve", ...argv.slice(end + 1)];
  const system = systemFor(process.platform, command, clawHome);
  if (action === "install") return install(system, clawHome, isDry);
  if (!existsSync(system.path) && !isDry) {
    console.log(`No service is installed: ${system.path} is not there.`);
    return 0;
  }
  return perform(action === "status" ? system.status : system.uninstall, isDry);
}

async function install(system: System, clawHome: string, isDry: boolean): Promise<number> {
  for (const sentence of missingFor(readSecrets(clawHome, {})))
    console.error(`claw: A service sees only what is in secrets.env. ${sentence}`);
  if (isDry) console.log(`# ${system.path}\n${system.text}`);
  if (isDry) return perform(system.install, true);
  if (/^bun\b/.test(basename(process.execPath)))
    throw new UsageError("A service runs the built claw; this one runs from its source.");
  if (existsSync(system.path)) await perform(system.uninstall, false); // it runs on with its old file
  mkdirSync(clawHome, { recursive: true, mode: 0o700 }); // a unit may name only what is there
  mkdirSync(dirname(system.path), { recursive: true });
  writeFileSync(system.path, system.text, { mode: 0o644 });
  const code = await perform(system.install, false);
  console.log(`${code === 0 ? "Installed" : "Written, though not all was done"}: ${system.path}`);
  return code;
}

/** Runs them in order, all of them, or shows them; the last code that is not 0. */
async function perform(commands: string[][], isDry: boolean): Promise<number> {
  let worst = 0;
  for (const command of commands) {
    if (isDry) console.log(`$ ${command.join(" ")}`);
    else if (Bun.which(command[0] ?? "") === null)
      throw new UsageError(`There is no ${command[0]} here, which runs services.`);
    else
      worst =
        (await Bun.spawn(command, { stdio: ["ignore", "inherit", "inherit"] }).exited) || worst;
  }
  return worst;
}

export function systemFor(platform: string, command: string[], clawHome: string): System {
  if (platform === "linux") return systemd(command, clawHome);
  if (platform === "darwin") return launchd(command, clawHome);
  throw new UsageError(`claw service knows systemd and launchd; ${platform} has neither.`);
}

function systemd(command: string[], clawHome: string): System {
  const path = join(homedir(), ".config/systemd/user/claw.service");
  const systemctl = (...args: string[]) => ["systemctl", "--user", ...args];
  const reload = systemctl("daemon-reload");
  return {
    path,
    text: unit(command.map((word) => quote(word.replaceAll("$", "$$$$"))).join(" "), clawHome),
    install: [reload, systemctl("enable", "--now", "claw.service"), ["loginctl", "enable-linger"]],
    uninstall: [systemctl("disable", "--now", "claw.service"), ["rm", "-f", path], reload],
    status: [systemctl("--no-pager", "status", "claw.service")],
  };
}

/** A word in a unit; "%" stands for itself. */
const quote = (word: string): string => `"${word.replace(/["\\]/g, "\\$&").replaceAll("%", "%%")}"`;

const unit = (command: string, clawHome: string): string => `[Unit]
Description=claw, a personal assistant on Slack and email

[Service]
Type=exec
ExecStart=${command}
Environment=${quote(`CLAW_HOME=${clawHome}`)}
UnsetEnvironment=BUN_OPTIONS BUN_BE_BUN
UMask=0077
KillMode=mixed
TimeoutStopSec=15
Restart=on-failure
RestartPreventExitStatus=2
RestartSec=5
RestartSteps=8
RestartMaxDelaySec=300

# Without PrivateUsers systemd before 254 ignores the next four in a user's unit.
PrivateUsers=yes
PrivateTmp=yes
ProtectSystem=strict
ProtectControlGroups=yes
ReadWritePaths=${quote(clawHome)}
NoNewPrivileges=yes
ProtectKernelModules=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
LockPersonality=yes
SystemCallArchitectures=native
# The tools' sandbox (bwrap) makes user namespaces and mounts a /proc of its own, which the kernel
# refuses where parts of /proc are covered. What the last two would cover no user can write.
RestrictNamespaces=no
ProtectKernelTunables=no
ProtectKernelLogs=no
# JavaScript is compiled while it runs.
MemoryDenyWriteExecute=no

[Install]
WantedBy=default.target
`;

function launchd(command: string[], clawHome: string): System {
  const path = join(homedir(), "Library/LaunchAgents/claw.serve.plist");
  const domain = `gui/${process.getuid?.() ?? ""}`;
  return {
    path,
    text: plist(command, clawHome),
    install: [["launchctl", "bootstrap", domain, path]],
    uninstall: [
      ["launchctl", "bootout", `${domain}/claw.serve`],
      ["rm", "-f", path],
    ],
    status: [["launchctl", "print", `${domain}/claw.serve`]],
  };
}

const text = (value: string): string =>
  `<string>${value.replace(/[&<>]/g, (sign) => `&#${sign.charCodeAt(0)};`)}</string>`;

/** An agent knows no variable of a shell. 63 is the umask 077. */
const plist = (
  command: string[],
  clawHome: string,
): string => `<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0"><dict>
  <key>Label</key>${text("claw.serve")}
  <key>ProgramArguments</key><array>${command.map(text).join("")}</array>
  <key>EnvironmentVariables</key><dict><key>CLAW_HOME</key>${text(clawHome)}
    <key>PATH</key>${text("/opt/homebrew/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")}</dict>
  <key>RunAtLoad</key><true/>
  <key>KeepAlive</key><dict><key>SuccessfulExit</key><false/></dict>
  <key>ThrottleInterval</key><integer>30</integer>
  <key>ExitTimeOut</key><integer>15</integer>
  <key>Umask</key><integer>63</integer>
  <key>StandardErrorPath</key>${text(join(clawHome, "serve.log"))}
</dict></plist>
`;
