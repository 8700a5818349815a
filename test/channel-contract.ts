/**
 * What every channel does, as tests. channel-contract.test.ts runs them over Slack and email; a
 * fork that adds a channel writes a `Rig` for it there and calls `testChannel` (skills/add-channel).
 *
 * The channel is real and so is what stands on its other side: a server on loopback, that of the
 * service or one of the test's own which is as strict. Nothing here knows one channel from another.
 */
import { expect, test } from "bun:test";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Channel, Host, Inbound, Incoming, Outgoing } from "../src/channels/channel.ts";
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

const waitMs = 8_000;
const nobody = new AbortController().signal;

/** A daemon that outlives its channels, and what the tests do over and over. */
class Bench implements Host, AsyncDisposable {
  readonly folder = mkdtempSync(join(tmpdir(), "claw-channel-"));
  /** All that was given to it, and what it kept: each message once. */
  readonly offered: Incoming[] = [];
  readonly kept: Incoming[] = [];
  isFull = false;
  gate = Promise.resolve();
  readonly #threads = new Map<string, string>();
  readonly #logged: string[] = [];
  readonly #running = new Set<Channel>();
  #note: unknown = null;
  constructor(readonly rig: Rig) {}

  async receive(inbound: Inbound): Promise<void> {
    if (inbound.type !== "message") return;
    this.offered.push(inbound);
    await this.gate;
    if (this.isFull) throw new Error("The disk is full.");
    if (!this.#threads.has(inbound.externalId)) this.kept.push(inbound);
    this.#threads.set(inbound.externalId, inbound.thread);
  }
  admits = () => true;
  findThread = (ids: readonly string[]) =>
    ids.map((id) => this.#threads.get(id)).find(Boolean) ?? null;
  readNote = async () => this.#note;
  writeNote = async (note: unknown) => void (this.#note = JSON.parse(JSON.stringify(note)));
  newFolder = async () => mkdtempSync(join(this.folder, "files-"));
  log: Host["log"] = (event, facts) => this.#logged.push(JSON.stringify({ event, ...facts }));

  async start(): Promise<Channel> {
    const channel = this.rig.open();
    this.#running.add(channel);
    await channel.start(this);
    return channel;
  }
  async stop(channel: Channel): Promise<void> {
    this.#running.delete(channel);
    const began = Date.now();
    await channel.stop();
    expect(Date.now() - began).toBeLessThan(3_000);
  }
  /** Says something and waits until claw has it. */
  async hear(words: Words): Promise<{ said: Said; incoming: Incoming }> {
    const said = await this.rig.say(words);
    return { said, incoming: await this.incoming(said) };
  }
  incoming = ({ externalId }: Said): Promise<Incoming> =>
    eventually(externalId, () => this.kept.find((one) => one.externalId === externalId));
  arrival = (words: string): Promise<Arrived> =>
    eventually(words, async () =>
      (await this.rig.arrived()).find(({ text }) => text.includes(words)),
    );
  ids = () => this.kept.map(({ externalId }) => externalId);
  /** Sends as the daemon does, and keeps the id. */
  async send(channel: Channel, outgoing: Outgoing, thread: string): Promise<string> {
    const id = await channel.send(outgoing, nobody);
    this.#threads.set(id, thread);
    return id;
  }
  async [Symbol.asyncDispose]() {
    await Promise.all([...this.#running].map((channel) => channel.stop()));
    rmSync(this.folder, { recursive: true });
    for (const secret of this.rig.secrets) expect(this.#logged.join()).not.toContain(secret);
  }
}

async function eventually<T>(what: string, look: () => T | Promise<T>): Promise<NonNullable<T>> {
  for (const deadline = Date.now() + waitMs; Date.now() < deadline; await Bun.sleep(5)) {
    const found = await look();
    if (found) return found;
  }
  throw new Error(`In ${waitMs / 1000} s this did not come: ${what}`);
}

const failureOf = (job: Promise<unknown>): Promise<unknown> =>
  job.then(() => null).catch((error: unknown) => error);

function outgoing(parts: Partial<Outgoing>): Outgoing {
  const usual = { reply: null, text: "some words", files: [], automatic: false };
  const [clientId, createdAt] = [`claw-${crypto.randomUUID()}`, Date.now()];
  return { clientId, address: "", createdAt, ...usual, ...parts };
}

/** What another process does; it must come to its end by itself. Prints how long that took. */
const life = (open: string, person: string) => `
  const [channel, none] = [${open}, async () => null];
  const notes = { readNote: none, writeNote: none, newFolder: none, findThread: () => null };
  await channel.start({ ...notes, receive: none, admits: () => true, log() {} });
  const { address } = await channel.locate(${JSON.stringify(person)});
  const outgoing = { ...${JSON.stringify(outgoing({ text: "farewell" }))}, address };
  await channel.send(outgoing, new AbortController().signal);
  await channel.stop();
  const stoppedAt = Date.now();
  process.on("exit", () => console.log(Date.now() - stoppedAt));`;

/** Registers the tests of one channel. */
export function testChannel(name: string, open: () => Promise<Rig>): void {
  for (const [title, work] of Object.entries(contract))
    test(`${name}: ${title}`, async () => {
      await using rig = await open();
      await using bench = new Bench(rig);
      await work(bench, rig, await bench.start());
    }, 20_000);
}

type Work = (bench: Bench, rig: Rig, channel: Channel) => Promise<void>;
const contract: Record<string, Work> = {
  async "start resolves once it is connected, or says why it never will be"(bench, rig, channel) {
    expect(rig.open().state().since).toBeNull();
    const { since, error } = channel.state();
    expect(since).toBeWithin(Date.now() - waitMs, Date.now() + 1);
    expect(error).toBeNull();
    const refusal = await failureOf(rig.openRefused().start(bench));
    expect(refusal).toBeInstanceOf(UsageError);
    for (const secret of rig.secrets) expect(messageOf(refusal)).not.toContain(secret);
  },
  async "a message comes as what it is"(bench, rig, channel) {
    const { said, incoming } = await bench.hear({ from: "ann", text: "Grüße & <b>hi</b> 🦊" });
    const { externalId, thread, address, from, reach, text, at, ...rest } = incoming;
    expect([externalId, from.address, reach]).toEqual([said.externalId, rig.people.ann, rig.reach]);
    expect([thread, address, from.name]).not.toContain("");
    expect(text).toEndWith("Grüße & <b>hi</b> 🦊");
    expect(at).toBeWithin(Date.now() - 60_000, Date.now() + 2_000);
    expect(rest).toMatchObject({ type: "message", files: [], problems: [] });
    await eventually("the time of the last message", () => channel.state().lastIn);
  },
  async "messages come in order, and all that waited once it has caught up"(bench, rig, channel) {
    const said: Said[] = [];
    for (const digit of "12345") said.push(await rig.say({ from: "ann", text: digit }));
    await channel.caughtUp();
    expect(bench.ids()).toEqual(said.map(({ externalId }) => externalId));
  },
  async "what is delivered again has the id that it had"(bench, rig, first) {
    const { said } = await bench.hear({ from: "ann", text: "once" });
    await rig.again?.(said.externalId);
    await first.caughtUp();
    await bench.stop(first);
    const second = await bench.start(); // It has no memory of the first.
    await rig.again?.(said.externalId);
    await second.caughtUp();
    expect([...new Set(bench.offered.map(({ externalId }) => externalId))]).toEqual(bench.ids());
    expect(bench.ids()).toEqual([said.externalId]);
  },
  async "what was not stored comes again, and so does the connection"(bench, rig, channel) {
    const { since } = channel.state();
    bench.isFull = true;
    const said = [await rig.say({ from: "ann", text: "when the disk was full" })];
    await eventually("an attempt", () => bench.offered.length);
    bench.isFull = false;
    await rig.cut();
    said.push(await rig.say({ from: "ann", text: "when nobody listened" }));
    await Promise.all(said.map(bench.incoming));
    await channel.caughtUp();
    expect(bench.ids()).toEqual(said.map(({ externalId }) => externalId));
    expect(channel.state().since).toBeGreaterThan(since ?? Infinity);
  },
  async "what was not stored when it stopped, and what came later, is the next one's"(
    bench,
    rig,
    first,
  ) {
    const { promise, resolve } = Promise.withResolvers<void>();
    bench.gate = promise;
    const early = await rig.say({ from: "ann", text: "early" });
    await eventually("an attempt", () => bench.offered.length);
    bench.gate = Promise.resolve();
    const stopped = first.stop(); // It may wait for the daemon, which does not answer it.
    await bench.start();
    await bench.incoming(early).finally(resolve);
    await stopped;
    expect(first.state().since).toBeNull();
    await bench.hear({ from: "ann", text: "late" });
    expect(bench.offered.length).toBe(3);
  },
  async "stop lets a send end, and leaves nothing that keeps a process alive"(bench, rig, channel) {
    const { address, thread } = await channel.locate(rig.people.ann);
    const sending = bench.send(channel, outgoing({ address, text: "the last words" }), thread);
    await bench.stop(channel);
    await sending;
    await bench.arrival("the last words");
    const command = [process.execPath, "-e", life(rig.program, rig.people.ann)];
    const child = Bun.spawn(command, { timeout: waitMs, stderr: "inherit" });
    expect(Number((await child.stdout.text()) || NaN)).toBeLessThan(1_000);
    await bench.arrival("farewell");
  },
  async "an answer reaches its person and thread, from another process too"(bench, rig, first) {
    const ann = await bench.hear({ from: "ann", text: "question" });
    const bob = await bench.hear({ from: "bob", text: "question" });
    expect(ann.incoming.thread).not.toBe(bob.incoming.thread);
    await bench.stop(first);
    const channel = await bench.start();
    for (const { said, incoming } of [bob, ann]) {
      const { address, thread, reply = null, externalId } = incoming;
      const text = `answer to ${externalId}`;
      const answer = outgoing({ address, reply: JSON.parse(JSON.stringify(reply)), text });
      const id = await bench.send(channel, answer, thread);
      expect(await channel.find(answer, nobody)).toBe(id);
      expect(await channel.find({ ...answer, clientId: "claw-never-sent" }, nobody)).toBeNull();
      expect(await bench.arrival(text)).toMatchObject({ to: said.to, thread: said.thread });
      const from = incoming === ann.incoming ? "ann" : "bob";
      const next = await bench.hear({ from, text: "and then?", in: id });
      expect([next.incoming.thread, next.incoming.from]).toEqual([thread, incoming.from]);
    }
    expect(channel.state().lastOut).toBeWithin(Date.now() - waitMs, Date.now() + 1);
  },
  async "who is named can be written to, and answers in that thread"(bench, rig, channel) {
    const { address, thread } = await channel.locate(rig.people.bob);
    const id = await bench.send(channel, outgoing({ address, text: "unasked" }), thread);
    expect((await bench.arrival("unasked")).to).toBe(rig.people.bob);
    const { incoming } = await bench.hear({ from: "bob", text: "thanks", in: id });
    expect(incoming.thread).toBe(thread);
    const nonsense = channel.locate("no such place");
    const nowhere = channel.send(outgoing({ address: rig.nowhere() }), nobody);
    for (const error of await Promise.all([nonsense, nowhere].map(failureOf))) {
      expect(error).toBeInstanceOf(SendError);
      expect(error).toMatchObject({
        kind: "permanent",
        message: expect.stringMatching(/^.+ .+ .+/),
      });
    }
  },
  async "a long text is sent in parts that hold all of it"(bench, rig, channel) {
    const lines = Array.from({ length: 1_600 }, (_, number) => `n${number + 1_000} 🦊🦊🦊`);
    const code = lines.splice(800).join("\n");
    const markdown = `${lines.join(" ")}\n\n\`\`\`ts\n${code}\n\`\`\``;
    expect([markdown.length > 20_000, channel.compose("")]).toEqual([true, []]);
    const { address, thread } = await channel.locate(rig.people.ann);
    for (const text of channel.compose(markdown)) {
      expect([text.isWellFormed(), text.split("```").length % 2]).toEqual([true, 1]);
      await bench.send(channel, outgoing({ address, text }), thread);
    }
    await bench.arrival("n2599");
    const all = (await rig.arrived()).map(({ text }) => text).join("\n");
    expect(all.match(/n\d{4}/g)).toEqual(markdown.match(/n\d{4}/g));
    expect(all.match(/🦊/gu)?.length).toBe(4_800);
  },
  async "files come in, from whom the daemon admits, and go out"(bench, rig, channel) {
    const content = crypto.getRandomValues(new Uint8Array(50_000));
    const file = { name: "plan.bin", mediaType: "application/x-plan", content };
    bench.admits = () => false;
    const refused = await bench.hear({ from: "bob", text: "take this", file });
    expect([refused.incoming.files, readdirSync(bench.folder)]).toEqual([[], []]);
    bench.admits = () => true;
    const { incoming } = await bench.hear({ from: "ann", text: "take this", file });
    const { address, reply = null, thread, files, problems } = incoming;
    const shape = { name: file.name, mediaType: file.mediaType, bytes: content.length };
    expect([files, problems]).toMatchObject([[shape], []]);
    expect(await Bun.file(files[0]?.path ?? "").bytes()).toEqual(content);
    await bench.send(channel, outgoing({ address, reply, files, text: "and back" }), thread);
    await bench.arrival("and back");
    const returned = (await rig.arrived()).flatMap((one) => one.files);
    expect(returned).toEqual([{ name: file.name, bytes: content }]);
  },
};
