/** The queue by itself: rows, claims, leases, fences; on a real file, with a clock of the test's own. */
import { expect, test } from "bun:test";
import { join } from "node:path";
import { openDatabase, type Opened } from "../src/store/database.ts";
import { type NewOutgoing, outboxIn } from "../src/store/outbox.ts";
import {
  type Ending,
  FencedError,
  type NewMessage,
  type Queue,
  queueIn,
} from "../src/store/queue.ts";
import { settleRun } from "../src/store/schedules.ts";
import { storeIn } from "../src/store/sessions.ts";
import type { Event } from "../src/types.ts";
import { newPlace } from "./claw.ts";

const bun = process.execPath;
const LEASE = 60_000;

function message(conversation: string, externalId: string, text = "hello"): NewMessage {
  return {
    channel: "slack",
    externalId,
    conversation: {
      id: `slack:${conversation}`,
      channel: "slack",
      thread: conversation,
      address: conversation,
      isolated: false,
    },
    kind: "command",
    sender: "U1",
    body: { text, name: "Ada", files: [], problems: [] },
    at: 1,
  };
}

const outgoing = (clientId: string, conversation: string): NewOutgoing => ({
  clientId,
  channel: "slack",
  conversationId: `slack:${conversation}`,
  address: conversation,
  body: { text: clientId, files: [], reply: null, automatic: false },
});

const ending = (rows: NewOutgoing[]): Ending => ({
  outcome: { ok: true, detail: null, costUsd: 0 },
  outgoing: rows,
});

/** A claim that has to be there. */
async function claim(queue: Queue, owner: string, now: number) {
  const found = await queue.claim(owner, now, LEASE);
  if (!found) throw new Error("Nothing was ready.");
  return found;
}

async function failureOf(promise: Promise<unknown>): Promise<unknown> {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  throw new Error("It did not fail.");
}

function open(clawHome: string): { opened: Opened; queue: Queue } {
  const opened = openDatabase(clawHome);
  return { opened, queue: queueIn(opened, settleRun) };
}

/** Begins a turn: the session exists and its first input has taken what waits. */
async function begin(opened: Opened, queue: Queue, owner: string, now: number) {
  const { lease, conversation } = await claim(queue, owner, now);
  const sessionId = conversation.sessionId ?? "";
  const store = storeIn(opened);
  if (!(await store.hasSession(sessionId)))
    await store.createSession({
      id: sessionId,
      cwd: "/w",
      model: "m",
      createdAt: now,
      updatedAt: now,
      title: "",
      forkedFrom: null,
    });
  const messages = queue.waiting(conversation.id).map(({ id }) => id);
  const input: Event = { type: "input", parts: [], origin: "person", messages };
  const lastSeq = (await store.readEvents(sessionId)).length;
  await queue.append(lease, { sessionId, lastSeq, events: [input] }, now, null);
  return { lease, log: { sessionId, lastSeq: lastSeq + 1 }, conversation };
}

test("a message is stored once, and wakes its conversation once", async () => {
  using place = newPlace();
  const { queue } = open(place.clawHome);
  expect(await queue.store(message("D1", "D1/1"), 100, 10)).toBe(true);
  expect(await queue.store(message("D1", "D1/1", "again"), 105, 10)).toBe(false);
  expect(queue.nextReadyAt()).toBe(110);
  expect(await queue.claim("a", 109, LEASE)).toBeNull();
  expect((await claim(queue, "a", 110)).conversation.id).toBe("slack:D1");
  expect(await queue.claim("b", 111, LEASE)).toBeNull();
  expect(queue.waiting("slack:D1").map(({ body }) => body.text)).toEqual(["hello"]);
});

test("a burst moves the turn's beginning on, but not for ever", async () => {
  using place = newPlace();
  const { queue } = open(place.clawHome);
  for (let at = 0; at < 300; at += 5) await queue.store(message("D1", `D1/${at}`), 1000 + at, 10);
  expect(queue.nextReadyAt()).toBe(1100);
});

test("the turn's end consumes, answers and frees in one transaction", async () => {
  using place = newPlace();
  const { opened, queue } = open(place.clawHome);
  await queue.store(message("D1", "D1/1"), 0, 0);
  const { lease, log } = await begin(opened, queue, "a", 1);
  await queue.store(message("D1", "D1/2"), 2, 0);
  const end = { type: "turn_end", reason: "done" } as const;
  const broken = { ...ending([outgoing("o0", "D9")]) }; // a conversation that is not there
  await failureOf(queue.append(lease, { ...log, events: [end] }, 3, broken));
  expect(queue.taken("slack:D1")).toHaveLength(1); // nothing of it happened
  await queue.append(lease, { ...log, events: [end] }, 3, ending([outgoing("o1", "D1")]));
  expect(queue.taken("slack:D1")).toEqual([]);
  expect(
    outboxIn(opened)
      .due("slack", 3, 9)
      .map(({ clientId }) => clientId),
  ).toEqual(["o1"]);
  expect((await claim(queue, "b", 3)).conversation).toMatchObject({ openTurn: false, failures: 0 });
});

test("whoever lost the lease can write nothing, and its answers are void", async () => {
  using place = newPlace();
  const { opened, queue } = open(place.clawHome);
  await queue.store(message("D1", "D1/1"), 0, 0);
  const stale = await begin(opened, queue, "a", 1);
  expect(await queue.claim("b", LEASE, LEASE)).toBeNull();
  const fresh = await claim(queue, "b", 1 + LEASE);
  expect(fresh.conversation).toMatchObject({ id: "slack:D1", openTurn: true, claims: 2 });
  const events = [{ type: "turn_end", reason: "done" } as const];
  const late = queue.append(
    stale.lease,
    { ...stale.log, events },
    9,
    ending([outgoing("o", "D1")]),
  );
  expect(await failureOf(late)).toBeInstanceOf(FencedError);
  const release = { readyAt: 9, error: null, outgoing: [outgoing("p", "D1")] };
  expect(await failureOf(queue.release(stale.lease, release, 9))).toBeInstanceOf(FencedError);
  expect(outboxIn(opened).due("slack", 1e12, 9)).toEqual([]);
  await queue.append(fresh.lease, { ...stale.log, events }, 9, ending([outgoing("q", "D1")]));
  expect(outboxIn(opened).due("slack", 1e12, 9)).toHaveLength(1);
});

test("a lease that is extended lasts; a clock that was set back frees what it cannot judge", async () => {
  using place = newPlace();
  const { queue } = open(place.clawHome);
  const noon = 1_000_000_000;
  await queue.store(message("D1", "D1/1"), noon, 0);
  await claim(queue, "a", noon);
  await queue.extend("a", noon + LEASE - 1, LEASE);
  expect(await queue.claim("b", noon + LEASE + 1, LEASE)).toBeNull();
  const setBack = noon - 3 * LEASE;
  expect((await claim(queue, "b", setBack)).lease.attempt).toBe(2);
});

test("a failure is given back with its time; the person's next message comes before that", async () => {
  using place = newPlace();
  const { opened, queue } = open(place.clawHome);
  await queue.store(message("D1", "D1/1"), 0, 0);
  const { lease } = await begin(opened, queue, "a", 1);
  const release = { readyAt: 500, error: "down", outgoing: [outgoing("told", "D1")] };
  await queue.release(lease, release, 2);
  expect(await queue.claim("a", 499, LEASE)).toBeNull();
  expect(queue.find("slack:D1")).toMatchObject({
    failures: 1,
    told: true,
    lastError: "down",
    claims: 0,
  });
  await queue.store(message("D1", "D1/2"), 10, 0);
  expect((await claim(queue, "a", 10)).conversation.openTurn).toBe(true);
});

test("the conversation that became ready first is first, however much another gets", async () => {
  using place = newPlace();
  const { opened, queue } = open(place.clawHome);
  for (let n = 0; n < 50; n++) await queue.store(message("FLOOD", `F/${n}`), n, 0);
  await queue.store(message("D1", "D1/1"), 60, 0);
  const { lease, log } = await begin(opened, queue, "a", 70);
  expect(lease.conversationId).toBe("slack:FLOOD");
  for (let n = 50; n < 99; n++) await queue.store(message("FLOOD", `F/${n}`), 71, 0);
  const events = [{ type: "turn_end", reason: "done" } as const];
  await queue.append(lease, { ...log, events }, 72, ending([]));
  expect((await claim(queue, "a", 73)).conversation.id).toBe("slack:D1");
});

test("eight processes that claim a thousand conversations never get the same one", async () => {
  using place = newPlace();
  const { queue } = open(place.clawHome);
  for (let n = 0; n < 1000; n++) await queue.store(message(`D${n}`, `D${n}/1`), n, 0);
  const src = join(import.meta.dir, "../src");
  const script = `
    const { openDatabase } = await import(${JSON.stringify(join(src, "store/database.ts"))});
    const { queueIn } = await import(${JSON.stringify(join(src, "store/queue.ts"))});
    const queue = queueIn(openDatabase(process.argv[1]), () => null);
    for (let claim; (claim = await queue.claim(String(process.pid), 5000, 60000)); )
      console.log(claim.lease.conversationId);`;
  const workers = Array.from({ length: 8 }, () =>
    Bun.spawn([bun, "-e", script, place.clawHome], { stdout: "pipe", stderr: "inherit" }),
  );
  const outputs = await Promise.all(workers.map((worker) => worker.stdout.text()));
  const claimed = outputs.flatMap((text) => text.split("\n").filter(Boolean));
  expect(claimed).toHaveLength(1000);
  expect(new Set(claimed).size).toBe(1000);
  expect(outputs.filter((text) => text !== "").length).toBeGreaterThan(1);
}, 60_000);

test("the outbox sends one row of an address at a time, in order, and forgets none that is in doubt", async () => {
  using place = newPlace();
  const { opened, queue } = open(place.clawHome);
  await queue.store(message("D1", "D1/1"), 0, 0);
  await queue.store(message("D2", "D2/1"), 0, 0);
  const outbox = outboxIn(opened);
  const rows = [outgoing("a", "D1"), outgoing("b", "D1"), outgoing("c", "D2"), outgoing("a", "D1")];
  await outbox.add(rows, 1);
  const due = () => outbox.due("slack", 10, 9).map(({ clientId }) => clientId);
  expect(due()).toEqual(["a", "c"]);
  const [first] = outbox.due("slack", 10, 1);
  await outbox.begin(first?.id ?? 0);
  expect(due()).toEqual(["c"]);
  expect(outbox.ambiguous("slack").map(({ clientId }) => clientId)).toEqual(["a"]);
  await outbox.defer(first?.id ?? 0, 100, "later");
  expect([due(), outbox.nextAt("slack", 10)]).toEqual([["c"], 100]);
  await outbox.succeed(first?.id ?? 0, "D1/9", 11);
  expect(due()).toEqual(["b", "c"]);
  expect(queue.findThread("slack", ["nowhere", "D1/9"])).toBe("D1");
  expect(queue.findThread("email", ["D1/9"])).toBeNull();
});

test("a message that waits can be changed or taken back; one that is taken cannot", async () => {
  using place = newPlace();
  const { opened, queue } = open(place.clawHome);
  await queue.store(message("D1", "D1/1", "frist"), 0, 0);
  expect(await queue.edit("slack", "D1/1", "first")).toBe(true);
  expect(queue.waiting("slack:D1")[0]?.body.text).toBe("first");
  await begin(opened, queue, "a", 1);
  expect(await queue.edit("slack", "D1/1", "third")).toBe(false);
  await queue.store(message("D1", "D1/2"), 2, 0);
  expect(await queue.edit("slack", "D1/2", null)).toBe(true);
  expect(queue.waiting("slack:D1")).toEqual([]);
});

test("what runs for every message looks things up, and scans no table", async () => {
  using place = newPlace();
  const { opened, queue } = open(place.clawHome);
  const outbox = outboxIn(opened);
  const seen = new Set<string>();
  const query = opened.db.query.bind(opened.db);
  opened.db.query = (sql: string) => (seen.add(sql), query(sql));
  await queue.store(message("D1", "D1/1"), 0, 10);
  const { lease, log } = await begin(opened, queue, "a", 20);
  queue.spent("slack:D1", 20);
  queue.findThread("slack", ["D1/1", "x"]);
  queue.nextReadyAt();
  const events: Event[] = [{ type: "turn_end", reason: "done" }];
  await queue.append(lease, { ...log, events }, 30, ending([outgoing("o", "D1")]));
  const [row] = outbox.due("slack", 40, 8);
  outbox.nextAt("slack", 40);
  await outbox.begin(row?.id ?? 0);
  outbox.ambiguous("slack");
  await outbox.succeed(row?.id ?? 0, "D1/2", 50);
  const scans = [...seen].flatMap((sql) =>
    query<{ detail: string }, []>(`EXPLAIN QUERY PLAN ${sql}`)
      .all()
      .map(({ detail }) => detail)
      .filter((detail) => /^SCAN (?!.*(USING (COVERING )?INDEX|json_each|CONSTANT))/.test(detail))
      .map((detail) => `${detail}: ${sql.slice(0, 80)}`),
  );
  expect(scans).toEqual([]);
  expect(seen.size).toBeGreaterThan(15);
});
