/** Which requests a route takes, and which addresses are nobody's to reach: tables. */
import { expect, test } from "bun:test";
import { config } from "../src/config.ts";
import { UsageError } from "../src/errors.ts";
import {
  checkRoute,
  findHost,
  findRoute,
  hostOf,
  isPrivate,
  pathOf,
  Refusal,
} from "../src/hands/routes.ts";
import type { Route } from "../src/types.ts";

test("hosts are names, in one spelling", () => {
  for (const host of [
    "github.com",
    "GitHub.com",
    "github.com.",
    "github.com:443",
    "GITHUB.COM.:443",
  ])
    expect(hostOf(host)).toBe("github.com");
  expect(hostOf("xn--gthub-n4a.com")).toBe("xn--gthub-n4a.com");
  for (const host of [
    "",
    ".",
    "github.com..",
    ".github.com",
    "git..hub.com",
    "gíthub.com",
    "git_hub.com",
    "github.com:80",
    "github.com:443:443",
    "user@github.com",
    "github.com/",
    "github.com%2e",
    "github com",
    "github.com\n",
    "127.0.0.1",
    "127.1",
    "0x7f.1",
    "0X7F000001",
    "0x",
    "017700000001",
    "2130706433",
    "example.0x1",
    "1.2.3.4.",
    "[::1]",
    "::1",
    `${"a.".repeat(130)}com`,
  ])
    expect([host, hostOf(host)]).toEqual([host, null]);
});

test("paths pass as everybody reads them alike, or not at all", () => {
  for (const [target, path] of [
    ["/", "/"],
    ["/a/b.c/..d/.git", "/a/b.c/..d/.git"],
    ["/a?b=/../c", "/a"],
    ["/a%20b", "/a%20b"],
    ["/@scope%2fname", "/@scope%2fname"],
    ["/a//b", "/a//b"],
  ] as const)
    expect([target, pathOf(target)]).toEqual([target, path]);
  const wrong =
    "|a|//a|/\\a|\\a|http://a/b|*|/a#b|/a?b#c|/a\\b|/.|/..|/a/..|/a/../b|/a/./b|/..;x/b|/%2e%2e/b|/%2E|/a%5Cb|" +
    "/%00|/%0a|/%1F|/%7f|/%|/%g0|/%2|/a b|/a\tb|/a\nb|/é";
  for (const target of [...wrong.split("|"), `/${"a".repeat(9_000)}`, "/a\u0000"])
    expect([target, pathOf(target)]).toEqual([target, null]);
});

const route: Route = { hosts: ["a.test", "b.test"], methods: ["GET"], paths: [] };

/** What `work` returns, or the refusal that it throws. */
function tryTo<T>(work: () => T): T | Refusal {
  try {
    return work();
  } catch (error) {
    if (error instanceof Refusal) return error;
    throw error;
  }
}

const takes = (paths: string[], target: string, more: Partial<Route> = {}): boolean => {
  const table = [{ ...route, ...more, name: "r", paths }];
  const asked = { host: "a.test", method: "GET", target };
  return !(tryTo(() => findRoute(table, asked)) instanceof Refusal);
};

test("patterns", () => {
  for (const [pattern, target, isTaken] of [
    ["/v1/messages", "/v1/messages", true],
    ["/v1/messages", "/v1/messages/", false],
    ["/v1/messages", "/v1/messagesx", false],
    ["/v1/messages", "/x/v1/messages", false],
    ["/v1.0/x", "/v1x0/x", false],
    ["/a+b(c)", "/a+b(c)", true],
    ["/acme/*.git/info/refs", "/acme/x.git/info/refs", true],
    ["/acme/*.git/info/refs", "/acme/x/y.git/info/refs", false],
    ["/acme/*.git/info/refs", "/acme/.git/info/refs", false],
    ["/repos/**", "/repos/", true],
    ["/repos/**", "/repos/a/b/c", true],
    ["/repos/**", "/repos", false],
    ["/**", "/", true],
    ["/*", "/@scope%2fname", false],
    ["/**", "/a/b%2Fc", false],
    ["/@*%2f*", "/@scope%2fname", true],
    ["/@*%2F*", "/@scope%2fname", true],
    ["/@*%2f*", "/@scope%2fname%2fmore", false],
    ["/@*%2f*", "/@scope/name", false],
  ] as const)
    expect([pattern, target, takes([pattern], target)]).toEqual([pattern, target, isTaken]);
});

test("a query passes where the route has one", () => {
  expect(takes(["/a"], "/a?b=c")).toBe(true);
  expect(takes(["/a"], "/a?b=c", { query: false })).toBe(false);
  expect(takes(["/a"], "/a?", { query: false })).toBe(false);
  expect(takes(["/a"], "/a", { query: false })).toBe(true);
});

test("the first route that takes a request has it, and a refusal names those there are", () => {
  const named = (name: string, more: Partial<Route>) => ({
    ...route,
    paths: ["/a"],
    name,
    ...more,
  });
  const table = [
    named("other", { hosts: ["c.test"] }),
    named("one", {}),
    named("two", { methods: ["GET", "POST"] }),
  ];
  const find = (method: string, host = "a.test") =>
    tryTo(() => findRoute(table, { host, method, target: "/a" }));
  expect(find("GET")).toMatchObject({ name: "one" });
  expect(find("POST")).toMatchObject({ name: "two" });
  expect(find("GET", "c.test")).toMatchObject({ name: "other" });
  const refusal = find("PUT");
  expect(refusal).toBeInstanceOf(Refusal);
  expect(refusal).toMatchObject({
    status: 403,
    message: "No route allows it. Those to a.test allow: GET /a; GET or POST /a.",
  });
  expect(findHost(table, "c.test:443")).toBe("c.test");
  expect(tryTo(() => findHost(table, "d.test:443"))).toMatchObject({ status: 403 });
  expect(() => findHost([], "d.test:443")).toThrow("nowhere");
});

test("addresses that are not of one public machine", () => {
  const closed =
    "0.0.0.0 10.0.0.1 10.255.255.255 100.64.0.1 100.127.255.255 100.100.100.200 127.0.0.1 127.8.8.8 168.63.129.16 " +
    "169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.1 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.19.255.255 " +
    "198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 " +
    ":: ::1 ::7f00:1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:a9fe:a9fe ::ffff:8.8.8.8 fe80::1 fe80::1%eth0 fec0::1 fc00::1 " +
    "fd00:ec2::254 ff02::1 64:ff9b::127.0.0.1 64:ff9b::a9fe:a9fe 64:ff9b::10.1.2.3 64:ff9b:1::1 100::1 2001::1 " +
    "2001:db8::1 2002:7f00:1::1 2002:a00:1::1 2002:808:808::1 3fff::1 4000::1 5f00::1 x 127.1 2130706433 0x7f.1";
  for (const address of closed.split(" "))
    expect([address, isPrivate(address)]).toEqual([address, true]);
  const open =
    "1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.1 100.63.255.255 100.128.0.1 172.15.0.1 172.32.0.1 140.82.121.4 223.255.255.255 " +
    "2606:4700::1111 2a00:1450:4001::200e 64:ff9b::8.8.8.8 64:ff9b::808:808";
  for (const address of open.split(" "))
    expect([address, isPrivate(address)]).toEqual([address, false]);
});

test("a table that cannot be meant is refused, and ours can", () => {
  const wrong: Partial<Route>[] = [
    { hosts: ["A.test"] },
    { hosts: ["*.test"] },
    { hosts: ["10.0.0.1"] },
    { hosts: ["a.test:443"] },
    { paths: ["a"] },
    { paths: ["/**/a/**/b/**"] },
    { paths: ["/*a*b*"] },
    { origin: "127.0.0.1:8080" },
    { origin: "http://127.0.0.1:8080/" },
    { origin: "http://a/path" },
    { origin: "ftp://a" },
    { origin: "http://user:pass@a" },
    { secret: { name: "X", header: "Authorization", as: "bearer" } },
    { secret: { name: "X", header: "a b", as: "bearer" } },
  ];
  for (const more of wrong) {
    const check = () => checkRoute("mine", { ...route, ...more });
    expect(check).toThrow(UsageError);
    expect(check).toThrow(/^config\.egress\.routes\.mine: /);
  }
  for (const [name, ours] of Object.entries(config.egress.routes)) checkRoute(name, ours);
  checkRoute("mine", { ...route, origin: "http://127.0.0.1:8080", paths: ["/"] });
});
