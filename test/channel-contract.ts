/**
 * What every channel does, as tests. channel-contract.test.ts runs them over Slack and email; a
 * fork that adds a channel writes a `Rig` for it there and calls `testChannel` (skills/add-channel).
 *
 * The channel is real and so is what stands on its other side: a server on loopback, that of the
 * service or one of the test's own which is as strict. Nothing here knows one channel from another.
 */
import { expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Channel, Host, Incoming, Outgoing } from "../src/channels/channel.ts";
import { SendError } from "../src/channels/channel.ts";
import { messageOf, UsageError } from "../src/errors.ts";

/** Where a message stands for those who read it, in the words of the rig. */
export type Place = {
  /** Whom it reached: a person's address, or a shared place. */
  to: string;
  /** The same for all messages of one thread. */
  thread: string;
};
export type Words = {
  from: "ann" | "bob";
  text: string;
  /** The id of the message that this one answers: what `say` or the channel's `send` returned. */
  in?: string;
  file?: { name: string; mediaType: string; content: Uint8Array };
};
/** `to` and `thread`: where the answer to it must arrive. */
export type Said = Place & { externalId: string };
export type Arrived = Place & { text: string; files: { name: string; bytes: Uint8Array }[] };

/** The other side: a server of its own for each test, and the people on it. */
export interface Rig extends AsyncDisposable {
  /** A channel to the server, not started; its waits between attempts are short. */
  open(): Channel;
  /** One with credentials that the server refuses. */
  openRefused(): Channel;
  /** `open` as an expression for another process: `(await import("…/x.ts")).openX({…})`. */
  program: string;
  /** What must stand in no log and no error, right or refused. */
  secrets: string[];
  /** How Ann and Bob are addressed: `Person.address`. */
  people: Record<Words["from"], string>;
  /** How what they say reaches claw. */
  reach: Incoming["reach"];
  /** Resolves when the server has it, whether claw takes it or not. */
  say(words: Words): Promise<Said>;
  /** The server delivers a message once more; left out where a server never would. */
  again?(externalId: string): Promise<void>;
  /** What people received from claw, oldest first. */
  arrived(): Promise<Arrived[]>;
  /** Every connection breaks; the server takes new ones. */
  cut(): Promise<void>;
  /** An address that looks right, and to which the server will never deliver. */
  nowhere(): string;
}

/** A daemon that keeps what it receives; it outlives the channels that stand on it. */
function openHost(folder: string) {
  const threads = new Map<string, string>();
  const offered: Incoming[] = [];
  const kept: Incoming[] = [];
  const logged: string[] = [];
  const state = { admits: true, isFull: false, gate: Promise.resolve(), note: null as unknown };
  const host: Host = {
    async receive(inbound) {
      if (inbound.type !== "message") return;
      offered.push(inbound);
      await state.gate;
      if (state.isFull) throw new Error("The disk is full.");
      if (!threads.has(inbound.externalId)) kept.push(inbound);
      threads.set(inbound.externalId, inbound.thread);
    },
    admits: () => state.admits,
    findThread: (ids) => ids.map((id) => threads.get(id)).find((one) => one !== undefined) ?? null,
    readNote: async () => state.note,
    writeNote: async (note) => void (state.note = JSON.parse(JSON.stringify(note))),
    newFolder: async () => mkdtempSync(join(folder, "files-")),
    log: (event, facts) => logged.push(JSON.stringify({ event, ...facts })),
  };
  return { host, state, threads, offered, kept, logged };
}

const waitMs = 8_000;
const nobody = () => new AbortController().signal;

/** Waits until what is looked for is there. */
async function eventually<T>(what: string, look: () => T | Promise<T>): Promise<NonNullable<T>> {
  for (const deadline = Date.now() + waitMs; Date.now() < deadline; await Bun.sleep(5)) {
    const found = await look();
    if (found !== null && found !== undefined && found !== false) return found;
  }
  throw new Error(`In ${waitMs / 1000} s there was not: ${what}.`);
}

async function failureOf(job: Promise<unknown>): Promise<unknown> {
  return job.then(() => null).catch((error: unknown) => error);
}

/** What the tests do over and over. */
function openBench(rig: Rig) {
  const folder = mkdtempSync(join(tmpdir(), "claw-channel-"));
  const daemon = openHost(folder);
  const running = new Set<Channel>();
  const bench = {
    ...daemon,
    rig,
    folder,
    async start(): Promise<Channel> {
      const channel = rig.open();
      running.add(channel);
      await channel.start(daemon.host);
      return channel;
    },
    async stop(channel: Channel): Promise<number> {
      const began = Date.now();
      await channel.stop();
      running.delete(channel);
      return Date.now() - began;
    },
    outgoing(parts: Partial<Outgoing>): Outgoing {
      const usual = { reply: null, text: "some words", files: [], automatic: false };
      const clientId = `claw-${crypto.randomUUID()}`;
      return { clientId, address: "", createdAt: Date.now(), ...usual, ...parts };
    },
    /** Sends as the daemon does, and keeps the id. */
    async send(channel: Channel, outgoing: Outgoing, thread: string): Promise<string> {
      const id = await channel.send(outgoing, nobody());
      daemon.threads.set(id, thread);
      return id;
    },
    incoming: ({ externalId }: Said): Promise<Incoming> =>
      eventually(`${externalId} received`, () =>
        daemon.kept.find((one) => one.externalId === externalId),
      ),
    arrival: (words: string): Promise<Arrived> =>
      eventually(`"${words}" arrived`, async () =>
        (await rig.arrived()).find(({ text }) => text.includes(words)),
      ),
    ids: () => daemon.kept.map(({ externalId }) => externalId),
    async [Symbol.asyncDispose]() {
      await Promise.all([...running].map((channel) => channel.stop()));
      rmSync(folder, { recursive: true });
      for (const secret of rig.secrets) expect(daemon.logged.join("\n")).not.toContain(secret);
    },
  };
  return bench;
}
type Bench = ReturnType<typeof openBench>;

/** Registers the tests of one channel. */
export function testChannel(name: string, open: () => Promise<Rig>): void {
  for (const [title, work] of Object.entries(contract))
    test(`${name}: ${title}`, async () => {
      await using rig = await open();
      await using bench = openBench(rig);
      await work(bench);
    }, 20_000);
}

const contract: Record<string, (bench: Bench) => Promise<void>> = {
  async "start resolves once it is connected"({ start, rig }) {
    expect(rig.open().state().since).toBeNull();
    const began = Date.now();
    const { since, error } = (await start()).state();
    expect(since).toBeWithin(began, Date.now() + 1);
    expect(error).toBeNull();
  },

  async "refused credentials end the start with a sentence that does not tell them"(bench) {
    const error = await failureOf(bench.rig.openRefused().start(bench.host));
    expect(error).toBeInstanceOf(UsageError);
    for (const secret of bench.rig.secrets) expect(messageOf(error)).not.toContain(secret);
  },

  async "a message comes as what it is"({ start, rig, incoming }) {
    const channel = await start();
    const said = await rig.say({ from: "ann", text: "Grüße & <b>hello</b> 🦊" });
    const { externalId, thread, address, from, reach, text, at, ...rest } = await incoming(said);
    expect([externalId, from.address, reach]).toEqual([said.externalId, rig.people.ann, rig.reach]);
    expect([thread, address, from.name]).not.toContain("");
    expect(text).toEndWith("Grüße & <b>hello</b> 🦊");
    expect(at).toBeWithin(Date.now() - 60_000, Date.now() + 2_000);
    expect(rest).toMatchObject({ type: "message", files: [], problems: [] });
    await eventually("a time of the last message in", () => channel.state().lastIn);
  },

  async "messages come in order, and all that waited once it has caught up"(bench) {
    const channel = await bench.start();
    const said: string[] = [];
    for (const number of [1, 2, 3, 4, 5])
      said.push((await bench.rig.say({ from: "ann", text: `number ${number}` })).externalId);
    await channel.caughtUp();
    expect(bench.ids()).toEqual(said);
  },

  async "what is delivered again has the id that it had"({ start, stop, rig, ...bench }) {
    await stop(await start());
    for (const text of ["first", "second"]) {
      const channel = await start(); // The second has no memory of its own of the first.
      const said = await rig.say({ from: "ann", text });
      await bench.incoming(said);
      await rig.again?.(bench.ids()[0] ?? "");
      await channel.caughtUp();
      await stop(channel);
    }
    expect(new Set(bench.offered.map(({ externalId }) => externalId)).size).toBe(2);
    expect(bench.ids().length).toBe(2);
  },

  async "what could not be stored is not acknowledged, and comes again"(bench) {
    await bench.start();
    bench.state.isFull = true;
    const said = await bench.rig.say({ from: "ann", text: "keep this" });
    await eventually("an attempt", () => bench.offered.length > 0);
    bench.state.isFull = false;
    await bench.rig.cut();
    await bench.incoming(said);
  },

  async "what was not stored when it stopped comes to the next"(bench) {
    const { promise, resolve } = Promise.withResolvers<void>();
    const first = await bench.start();
    bench.state.gate = promise;
    const said = await bench.rig.say({ from: "ann", text: "keep this" });
    await eventually("an attempt", () => bench.offered.length > 0);
    bench.state.gate = Promise.resolve();
    const stopped = bench.stop(first); // It may wait for the daemon.
    await bench.start();
    await bench.incoming(said).finally(resolve);
    await stopped;
  },

  async "an answer reaches the person in the thread, from another process too"(bench) {
    const { rig, incoming, outgoing } = bench;
    const first = await bench.start();
    const said = {
      ann: await rig.say({ from: "ann", text: "question" }),
      bob: await rig.say({ from: "bob", text: "question" }),
    };
    const asked = { ann: await incoming(said.ann), bob: await incoming(said.bob) };
    expect(asked.ann.thread).not.toBe(asked.bob.thread);
    await bench.stop(first);
    const channel = await bench.start();
    for (const who of ["bob", "ann"] as const) {
      const { address, thread, reply = null } = asked[who];
      const stored = JSON.parse(JSON.stringify(reply));
      const answer = outgoing({ address, reply: stored, text: `answer to ${who}` });
      const id = await bench.send(channel, answer, thread);
      const { to, thread: place } = await bench.arrival(`answer to ${who}`);
      expect({ to, place }).toEqual({ to: said[who].to, place: said[who].thread });
      const next = await incoming(await rig.say({ from: who, text: "and then?", in: id }));
      expect([next.thread, next.from.address]).toEqual([thread, rig.people[who]]);
    }
    expect(channel.state().lastOut).toBeWithin(Date.now() - waitMs, Date.now() + 1);
  },
};
