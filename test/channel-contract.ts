/**
 * What every channel does, as tests. channel-contract.test.ts runs them over Slack and email; a
 * fork that adds a channel writes a `Rig` for it there and calls `testChannel` (skills/add-channel).
 * The channel is real, and so is its other side: a server on loopback, that of the service or one
 * as strict. Nothing here knows one channel from another.
 */
import { expect, test } from "bun:test";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Channel, Host, Inbound, Incoming, Outgoing } from "../src/channels/channel.ts";
import { UsageError } from "../src/errors.ts";

export type Words = {
  from: "ann" | "bob";
  text: string;
  in?: string; // the id, by `say` or by the channel's `send`, of the message that this one answers
  file?: { name: string; mediaType: string; content: Uint8Array };
};
/** Whom a message reached (a person's address, or a shared place), and what all of a thread share. */
export type Place = { to: string; thread: string };
export type Said = Place & { externalId: string }; // with the place of the answer to it
export type Arrived = Place & { text: string; files: { name: string; bytes: Uint8Array }[] };

/** The other side: a server of its own for each test, and the people on it. */
export interface Rig extends AsyncDisposable {
  open(): Channel; // to the server, not started; its waits between attempts are short
  openRefused(): Channel; // with credentials that the server refuses
  program: string; // `open` for another process: `(await import("…/x.ts")).openX({…})`
  secrets: string[]; // credentials, right and refused: they must stand in no log and no error
  people: Record<Words["from"], string>; // how Ann and Bob are addressed: `Person.address`
  reach: Incoming["reach"]; // of what they say
  say(words: Words): Promise<Said>; // resolves when the server has it, whether claw takes it or not
  again?(externalId: string): Promise<void>; // delivers it once more, if the server ever would
  arrived(): Promise<Arrived[]>; // what people received from claw, oldest first
  cut(): Promise<void>; // breaks every connection; the server takes new ones
  nowhere(): string; // an address that looks right, to which the server will never deliver
}

const waitMs = 8_000;
const nobody = new AbortController().signal;

/** A daemon that outlives its channels, and what the tests do over and over. */
class Bench implements Host, AsyncDisposable {
  readonly folder = mkdtempSync(join(tmpdir(), "claw-channel-"));
  readonly offered: Incoming[] = [];
  readonly kept: Incoming[] = []; // of what was offered, each message once
  store = async (): Promise<void> => {};
  readonly #threads = new Map<string, string>();
  readonly #logged: string[] = [];
  readonly #running = new Set<Channel>();
  #note: unknown = null;
  constructor(readonly rig: Rig) {}
  async receive(inbound: Inbound): Promise<void> {
    if (inbound.type !== "message") return;
    this.offered.push(inbound);
    await this.store();
    if (!this.#threads.has(inbound.externalId)) this.kept.push(inbound);
    this.#threads.set(inbound.externalId, inbound.thread);
  }
  admits = () => true;
  findThread = (ids: readonly string[]) =>
    ids.map((id) => this.#threads.get(id)).find(Boolean) ?? null;
  readNote = async () => this.#note;
  writeNote = async (note: unknown) => void (this.#note = asStored(note));
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
  async hear(words: Words) {
    const said = await this.rig.say(words);
    return { from: words.from, said, incoming: await this.incoming(said) };
  }
  incoming = ({ externalId }: Said): Promise<Incoming> =>
    eventually(externalId, () => this.kept.find((one) => one.externalId === externalId));
  /** Sends as the daemon does, keeps the id, and waits for the last word of it to arrive. */
  async send(channel: Channel, outgoing: Outgoing, thread: string) {
    const id = await channel.send(outgoing, nobody);
    this.#threads.set(id, thread);
    const word = outgoing.text.match(/\w{5,}/g)?.at(-1) ?? "";
    const look = async () => (await this.rig.arrived()).find(({ text }) => text.includes(word));
    return { id, arrived: await eventually(word, look) };
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

const failureOf = (job: Promise<unknown>) => job.catch((error: unknown) => error);
const asStored = (value: unknown) => JSON.parse(JSON.stringify(value));
const idsOf = (messages: { externalId: string }[]) => messages.map((one) => one.externalId);
function outgoing(parts: Partial<Outgoing>): Outgoing {
  const usual = { address: "", reply: null, text: "words", files: [], automatic: false };
  return { clientId: `claw-${crypto.randomUUID()}`, createdAt: Date.now(), ...usual, ...parts };
}

/** What another process does: it stops while it sends. Prints how long it lived on after that. */
const life = (open: string, person: string) => `
  const [channel, host] = [${open}, new Proxy({}, { get: () => async () => null })];
  await channel.start(host);
  const { address } = await channel.locate(${JSON.stringify(person)});
  const outgoing = { ...${JSON.stringify(outgoing({ text: "farewell" }))}, address };
  await Promise.all([channel.send(outgoing, new AbortController().signal), channel.stop()]);
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

const contract: Record<string, (bench: Bench, rig: Rig, channel: Channel) => Promise<void>> = {
  async "start resolves once it is connected, or says why it never will be"(bench, rig, channel) {
    const { since, error } = channel.state();
    expect(since).toBeWithin(Date.now() - waitMs, Date.now() + 1);
    expect([error, rig.open().state().since]).toEqual([null, null]);
    const refusal = await failureOf(rig.openRefused().start(bench));
    expect(refusal).toBeInstanceOf(UsageError);
    for (const secret of rig.secrets) expect(String(refusal)).not.toContain(secret);
  },
  async "a message comes as what it is"(bench, rig) {
    const { said, incoming } = await bench.hear({ from: "ann", text: "Grüße & <b>hi</b> 🦊" });
    const { externalId, thread, address, from, reach, text, at, ...rest } = incoming;
    expect([externalId, from.address, reach]).toEqual([said.externalId, rig.people.ann, rig.reach]);
    expect([thread, address, from.name]).not.toContain("");
    expect(text).toEndWith("Grüße & <b>hi</b> 🦊");
    expect(at).toBeWithin(Date.now() - 60_000, Date.now() + 2_000);
    expect(rest).toMatchObject({ type: "message", files: [], problems: [] });
  },
  async "messages come in order, and all that waited once it has caught up"(bench, rig, channel) {
    const said: Said[] = [];
    for (const digit of "12345") said.push(await rig.say({ from: "ann", text: digit }));
    await channel.caughtUp();
    expect(idsOf(bench.kept)).toEqual(idsOf(said));
  },
  async "what was not stored comes again, and so does the connection"(bench, rig, channel) {
    const { since } = channel.state();
    bench.store = () => Promise.reject(new Error("The disk is full."));
    const said = [await rig.say({ from: "ann", text: "when the disk was full" })];
    await eventually("an attempt", () => bench.offered.length);
    bench.store = async () => {};
    await rig.cut();
    said.push(await rig.say({ from: "ann", text: "when nobody listened" }));
    await Promise.all(said.map(bench.incoming));
    await channel.caughtUp();
    expect(idsOf(bench.kept)).toEqual(idsOf(said));
    expect(channel.state().since).toBeGreaterThan(since ?? Infinity);
  },
  async "what was not stored when it stopped comes to the next, by the same id"(bench, rig, first) {
    const { promise, resolve } = Promise.withResolvers<void>();
    bench.store = () => promise;
    const early = await rig.say({ from: "ann", text: "early" });
    await eventually("an attempt", () => bench.offered.length);
    bench.store = async () => {};
    const stopped = first.stop(); // It may wait for the daemon, which does not answer it.
    const second = await bench.start();
    await bench.incoming(early).finally(resolve);
    await stopped;
    await rig.again?.(early.externalId);
    const late = await bench.hear({ from: "ann", text: "late" });
    await second.caughtUp();
    expect(idsOf(bench.kept)).toEqual(idsOf([early, late.said]));
  },
  async "once stopped it receives nothing, and lets its process end"(bench, rig, channel) {
    await bench.stop(channel);
    await rig.say({ from: "ann", text: "anybody there?" });
    const command = [process.execPath, "-e", life(rig.program, rig.people.ann)];
    const child = Bun.spawn(command, { timeout: waitMs, stderr: "inherit" });
    expect(Number((await child.stdout.text()) || NaN)).toBeLessThan(500);
    await eventually("farewell", async () => (await rig.arrived()).length);
    expect([bench.offered, channel.state().since]).toEqual([[], null]);
  },
  async "an answer reaches its person and thread, from another process too"(bench, _, first) {
    const ann = await bench.hear({ from: "ann", text: "question" });
    const bob = await bench.hear({ from: "bob", text: "question" });
    expect(ann.incoming.thread).not.toBe(bob.incoming.thread);
    await bench.stop(first);
    const channel = await bench.start();
    for (const { from, said, incoming } of [bob, ann]) {
      const { address, thread, reply = null } = incoming;
      const answer = outgoing({ address, reply: asStored(reply), text: `answer_to_${from}` });
      const { id, arrived } = await bench.send(channel, answer, thread);
      expect(arrived).toMatchObject({ to: said.to, thread: said.thread });
      expect(await channel.find(answer, nobody)).toBe(id);
      expect(await channel.find({ ...answer, clientId: "claw-never-sent" }, nobody)).toBeNull();
      const next = await bench.hear({ from, text: "and then?", in: id });
      expect([next.incoming.thread, next.incoming.from]).toEqual([thread, incoming.from]);
    }
    const { lastIn, lastOut } = channel.state();
    for (const at of [lastIn, lastOut]) expect(at).toBeWithin(Date.now() - waitMs, Date.now() + 1);
  },
  async "who is named can be written to, and answers there; nobody else can"(bench, rig, channel) {
    const { address, thread } = await channel.locate(rig.people.bob);
    const { id, arrived } = await bench.send(channel, outgoing({ address }), thread);
    expect(arrived.to).toBe(rig.people.bob);
    const { incoming } = await bench.hear({ from: "bob", text: "thanks", in: id });
    expect(incoming.thread).toBe(thread);
    const nonsense = failureOf(channel.locate("no such place"));
    const nowhere = failureOf(channel.send(outgoing({ address: rig.nowhere() }), nobody));
    const sentence = expect.stringMatching(/\w+ .+ \w+/);
    for (const error of [await nonsense, await nowhere])
      expect(error).toMatchObject({ name: "SendError", kind: "permanent", message: sentence });
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
    const all = (await rig.arrived()).map(({ text }) => text).join("\n");
    const marks = /n\d{4}|🦊/gu;
    expect(all.match(marks)).toEqual(markdown.match(marks));
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
    await bench.send(channel, outgoing({ address, reply, files }), thread);
    const returned = (await rig.arrived()).flatMap((one) => one.files);
    expect(returned).toEqual([{ name: file.name, bytes: content }]);
  },
};
