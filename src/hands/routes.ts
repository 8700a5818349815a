/**
 * What may leave a sandbox: which route a request takes, and which addresses nobody may be led to.
 * Pure. All that a client sends is compared, never parsed into a URL: parsers disagree, and what
 * they disagree about (`//host`, `\`, `%2e`, `0x7f.1`) is refused here before anything is compared.
 */
import { BlockList, isIPv4, isIPv6 } from "node:net";
import { UsageError } from "../errors.ts";
import type { Route } from "../types.ts";

/** A route of the table, checked. */
export type NamedRoute = Route & { name: string };

/** A request ends here: an HTTP status, and a sentence for the one who asked. */
export class Refusal extends Error {
  override name = "Refusal";
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

// ── Hosts ───────────────────────────────────────────────────────────────────────────────────────

/** The host of "host" or "host:443", in lower case and without a last dot; null if it is no name. */
export function hostOf(authority: string): string | null {
  const host = authority.toLowerCase().replace(/:443$/, "").replace(/\.$/, "");
  const isName = /^[a-z0-9-]+(\.[a-z0-9-]+)*$/.test(host) && host.length <= 253;
  // A name that ends in a number is an address to somebody: 127.1, 0x7f.1, 2852039166.
  return isName && !/(^|\.)(\d+|0x[0-9a-f]*)$/.test(host) ? host : null;
}

/** The listed host of CONNECT's target, which has to name port 443. Throws Refusal. */
export function findHost(routes: readonly NamedRoute[], target: string): string {
  const host = target.endsWith(":443") ? hostOf(target) : null;
  if (host !== null && routes.some(({ hosts }) => hosts.includes(host))) return host;
  const hosts = [...new Set(routes.flatMap((route) => route.hosts))].join(", ") || "nowhere";
  throw new Refusal(403, `This sandbox has no way to there. Its ways out lead to: ${hosts}.`);
}

// ── Requests ────────────────────────────────────────────────────────────────────────────────────

/** The path of a request target, or null: only what every parser understands alike passes. */
export function pathOf(target: string): string | null {
  if (!/^\/(?!\/)[\x21-\x7e]{0,8000}$/.test(target) || /[\\#]/.test(target)) return null;
  const [path = ""] = target.split("?", 1);
  if (path.length > 2_000) return null;
  // Every "%" begins an encoded byte, and none of these is a dot, a backslash or a control.
  if (/%(?![0-9a-f]{2})|%(2e|5c|7f|[01][0-9a-f])/i.test(path)) return null;
  return path.split("/").some((segment) => /^\.{1,2}(;|$)/.test(segment)) ? null : path;
}

/** The first of `routes` that a request to `host` may take. Throws Refusal. */
export function findRoute(
  routes: readonly NamedRoute[],
  { host, method, target }: { host: string; method: string; target: string },
): NamedRoute {
  const path = pathOf(target);
  if (path === null) throw new Refusal(400, "Its path is not written plainly.");
  const there = routes.filter(({ hosts }) => hosts.includes(host));
  const found = there.find(
    (route) =>
      route.methods.includes(method) &&
      (route.query !== false || !target.includes("?")) &&
      route.paths.some((pattern) => patternOf(pattern).test(path)),
  );
  if (found) return found;
  const ways = there.map(({ methods, paths }) => `${methods.join(" or ")} ${paths.join(" or ")}`);
  throw new Refusal(403, `No route allows it. Those to ${host} allow: ${ways.join("; ")}.`);
}

/** "*" is anything but "/", "**" anything; neither is an encoded "/", which has to be spelled. */
function patternOf(pattern: string): RegExp {
  const parts = pattern.split(/(\*\*?|%2f)/i).map((part) => {
    if (part === "**") return "(?:(?!%2[fF]).)*";
    if (part === "*") return "(?:(?!%2[fF])[^/])+";
    return part.toLowerCase() === "%2f" ? "%2[fF]" : RegExp.escape(part);
  });
  return new RegExp(`^${parts.join("")}$`);
}

/** Throws UsageError where the table says what cannot be meant. */
export function checkRoute(name: string, route: Route): NamedRoute {
  const wrong = (what: string) => new UsageError(`config.egress.routes.${name}: ${what}.`);
  const { hosts, paths, origin, secret } = route;
  for (const host of hosts)
    if (hostOf(host) !== host) throw wrong(`"${host}" is no host name in lower case`);
  for (const path of paths)
    // More wildcards would make the search for a match take long, and who asks could choose it.
    if (!path.startsWith("/") || /\*\*.*\*\*.*\*\*|\*[^/]*\*[^/]*\*/.test(path))
      throw wrong(
        `the path "${path}" begins without "/", or has three wildcards where two will do`,
      );
  if (secret && !/^[a-z0-9-]+$/.test(secret.header))
    throw wrong(`"${secret.header}" is no header's name in lower case`);
  if (origin !== undefined && (!/^https?:/.test(origin) || URL.parse(origin)?.origin !== origin))
    throw wrong(`"${origin}" is no origin such as "http://127.0.0.1:8080"`);
  return { ...route, name };
}

// ── Addresses ───────────────────────────────────────────────────────────────────────────────────

/** IANA's special-purpose registries, multicast, and where clouds keep their metadata. */
const SPECIAL =
  "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 168.63.129.16/32 169.254.0.0/16 172.16.0.0/12 " +
  "192.0.0.0/24 192.0.2.0/24 192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 " +
  "203.0.113.0/24 224.0.0.0/3";
const SPECIAL_IPV6 = "2001::/23 2001:db8::/32 2002::/16 3fff::/20";

const global = new BlockList(); // of IPv6, all else is special
global.addSubnet("2000::", 3, "ipv6");
global.addSubnet("64:ff9b::", 96, "ipv6"); // NAT64: judged by the IPv4 address within
const special = new BlockList();
for (const [address = "", bits] of SPECIAL.split(" ").map((range) => range.split("/"))) {
  special.addSubnet(address, Number(bits), "ipv4");
  special.addSubnet(`64:ff9b::${address}`, 96 + Number(bits), "ipv6");
}
for (const [address = "", bits] of SPECIAL_IPV6.split(" ").map((range) => range.split("/")))
  special.addSubnet(address, Number(bits), "ipv6");

/** Whether an address is anything but a public one of a single machine. */
export function isPrivate(address: string): boolean {
  if (isIPv4(address)) return special.check(address, "ipv4");
  if (!isIPv6(address) || address.includes("%")) return true;
  return !global.check(address, "ipv6") || special.check(address, "ipv6");
}
