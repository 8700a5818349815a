/**
 * The daemon's parts and how they are joined: channels → intake → queue → turns → outbox → senders,
 * with the scheduler beside them. Holds no decision of its own.
 */
import { readdirSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import type { Channel } from "../channels/channel.ts";
import { config } from "../config.ts";
import { type Opened, self } from "../store/database.ts";
import type { Builder } from "../hands/walls.ts";
import { memoryIn } from "../store/memory.ts";
import { type OutgoingRow, outboxIn } from "../store/outbox.ts";
import { overviewIn } from "../store/overview.ts";
import { peopleIn } from "../store/people.ts";
import { type Conversation, type ConversationKey, queueIn } from "../store/queue.ts";
import { type Schedule, schedulesIn, settleRun } from "../store/schedules.ts";
import { storeIn } from "../store/sessions.ts";
import type { Hands, Model } from "../types.ts";
import { openAccess, type Owner } from "./access.ts";
import { workOn } from "./conversation.ts";
import type { Daemon } from "./daemon.ts";
import { openHands } from "./hands.ts";
import { keepHeartbeat } from "./heartbeat.ts";
import { openHost, ownerNotices, takeWords } from "./intake.ts";
import type { Log } from "./log.ts";
import { openQuestions } from "./questions.ts";
import { scheduleTool } from "./schedule-tool.ts";
import { openScheduler } from "./scheduler.ts";
import { openSender } from "./sender.ts";
import { openSocket, socketPath } from "./socket.ts";
import { type Live, readStatus } from "./status.ts";
import { brainTools, withTools } from "./tools.ts";
import { openTurns } from "./turns.ts";

/** What was configured. */
export type Parts = {
  clawHome: string;
  opened: Opened;
  owners: readonly Owner[];
  channels: readonly Channel[];
  /** Builds the walls of every conversation; null: there are none, by the owner's word. */
  builder: Builder | null;
  /** A secret by its variable's name, as it is now. */
  secretOf: (name: string) => string | undefined;
  model: Model;
  /** A model by its name; null: `model`. */
  open: (name: string | null) => Promise<Model>;
  log: Log;
};

export type Assembly = {
  /** Lets a channel receive. */
  start: (channel: Channel) => Promise<void>;
  /** Takes up what an earlier daemon left, and begins to work. */
  begin(): Promise<void>;
  /** Resolves when what waited has been worked on and has gone out. */
  drain(): Promise<void>;
  stop(): Promise<void>;
};

export async function assemble(parts: Parts): Promise<Assembly> {
  const { clawHome, opened, channels, log, model, builder, secretOf } = parts;
  const isolation = builder?.name ?? "none";
  const startedAt = Date.now();
  const now = Date.now;
  const people = peopleIn(opened);
  const daemon: Daemon = {
    clawHome,
    store: storeIn(opened),
    queue: queueIn(opened, settleRun),
    outbox: outboxIn(opened),
    people,
    memory: memoryIn(opened),
    schedules: schedulesIn(opened),
    access: openAccess(parts.owners, people),
    questions: openQuestions(config.serve.questionMs),
    channels: new Map(channels.map((channel) => [channel.name, channel])),
    doing: new Map(),
    isolation,
    log,
    now,
    model: (name) => modelOf(name),
    hands: (conversation, folder) => handsOf(conversation, folder),
    wakeTurns: () => turns.wake(),
    wakeSenders: () => senders.forEach((sender) => sender.wake()),
    interrupt: (id) => turns.interrupt(id),
  };
  const { queue, outbox, schedules } = daemon;
  const freed = await queue.freeAll(now());
  if (freed > 0) log("recovered", { conversations: freed });

  const inTurn = queue.openTurns();
  const hands = await openHands({ clawHome, opened, builder, inTurn, secretOf, log, now });
  const tidy = () => {
    removeOld(clawHome);
    void hands.tidy();
  };
  tidy();
  const daily = setInterval(tidy, 86_400_000);
  const senders = channels.map((channel) =>
    openSender({ channel, outbox, tell: (...lost) => tellLost(daemon, ...lost), log, now }),
  );
  const turns = openTurns({
    queue,
    owner: self(),
    maxTurns: config.serve.maxTurns,
    work: (claim, signal) => workOn({ ...claim, daemon, signal }),
    log,
    now,
  });
  const scheduler = openScheduler({
    schedules,
    locate: (schedule) => locate(daemon, schedule),
    wake: () => turns.wake(),
    tell: (schedule, why) => void tellFailed(daemon, schedule, why),
    now,
    log,
  });

  const models = new Map<string | null, Promise<Model>>();
  /** Opened once; a name that fails may be right later (a key, a server that was started). */
  function modelOf(name: string | null): Promise<Model> {
    const opened = models.get(name) ?? parts.open(name);
    models.set(name, opened);
    opened.catch(() => models.delete(name));
    return opened;
  }

  /** The hands of a conversation stay; what the brain adds belongs to its present state. */
  function handsOf(conversation: Conversation, folder: string): Hands {
    const outgoingFolder = join(clawHome, "outgoing");
    const own = brainTools({ ...daemon, conversation, folder, outgoingFolder });
    const schedule = scheduleTool({
      schedules,
      conversation,
      now,
      changed: () => scheduler.changed(),
      takesScripts: builder !== null,
    });
    return withTools(hands.of(conversation.id, folder), [schedule, ...own]);
  }

  const live = (): Live => ({
    pid: process.pid,
    since: startedAt,
    model: model.id,
    isolation,
    channels: channels.map((channel) => ({ name: channel.name, ...channel.state() })),
    running: turns.running().map((turn) => ({
      ...turn,
      doing: daemon.doing.get(turn.conversation)?.() ?? "starting",
    })),
  });
  const overview = overviewIn(opened);
  const socket = openSocket({
    path: socketPath(clawHome),
    status: () => readStatus(overview, live(), now()),
    changed: () => {
      scheduler.changed();
      turns.wake();
    },
  });

  let isOpen = true;
  return {
    start(channel) {
      const host = openHost(daemon, channel);
      return channel.start({
        ...host,
        receive: (inbound) =>
          isOpen ? host.receive(inbound) : Promise.reject(new Error("claw is ending")),
      });
    },
    async begin() {
      for (const { conversationId } of queue.words()) await takeWords(daemon, conversationId);
      turns.wake();
      await keepHeartbeat(daemon);
      await scheduler.catchUp();
    },
    async drain() {
      await Promise.all(channels.map((channel) => channel.caughtUp()));
      for (;;) {
        await turns.idle();
        await Promise.all(senders.map((sender) => sender.idle()));
        const next = queue.nextReadyAt();
        if (next === null || next > now() + 1_000) return;
        await Bun.sleep(Math.max(next - now(), 1));
      }
    },
    async stop() {
      isOpen = false;
      clearInterval(daily);
      scheduler.stop();
      await turns.stop(config.serve.graceMs * 0.7);
      await Promise.race([Promise.all(senders.map((sender) => sender.idle())), Bun.sleep(1_000)]);
      await Promise.all([...senders, ...channels].map((part) => part.stop()));
      await hands.close();
      socket.stop();
    },
  };
}

/** The conversation that a schedule's run belongs to. */
async function locate({ queue, channels }: Daemon, schedule: Schedule): Promise<ConversationKey> {
  const { conversationId, isolated, channel: name, target, id } = schedule;
  const own = conversationId === null ? null : queue.find(conversationId);
  const channel = channels.get(name);
  if (!own && !channel) throw new Error(`The channel ${name} is not configured.`);
  const place = own ?? (await channel?.locate(target)) ?? { thread: target, address: target };
  const { thread, address } = place;
  const key = `${name}:${thread}`;
  return { id: isolated ? `${key}#${id}` : key, channel: name, thread, address, isolated };
}

/** The owner is told once of what cannot be delivered, not of what it said. */
function tellLost(daemon: Daemon, row: OutgoingRow, why: string, state: "failed" | "unknown") {
  const failure = `A message to ${row.channel}:${row.address} could not be delivered: ${why}`;
  const text = state === "unknown" ? why : failure;
  const rows = ownerNotices(daemon, `lost-${row.clientId}`, text);
  return rows.map((notice) => ({ ...notice, body: { ...notice.body, aboutFailure: true } }));
}

/** Of a schedule that came to nothing before it could have a turn. */
async function tellFailed(daemon: Daemon, { id, name }: Schedule, why: string): Promise<void> {
  const text = `The schedule "${name}" failed: ${why}`;
  await daemon.outbox.add(
    ownerNotices(daemon, `claw-schedule-${id}-${daemon.now()}`, text),
    daemon.now(),
  );
  daemon.wakeSenders();
}

/** Files of messages that came and went: kept for a week. */
function removeOld(clawHome: string): void {
  const before = Date.now() - 7 * 86_400_000;
  for (const folder of ["incoming", "outgoing"].map((name) => join(clawHome, name))) {
    if (!statSync(folder, { throwIfNoEntry: false })) continue;
    for (const name of readdirSync(folder)) {
      const path = join(folder, name);
      if (statSync(path).mtimeMs < before) rmSync(path, { recursive: true, force: true });
    }
  }
}
