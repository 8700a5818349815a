/**
 * The way out of one channel: takes rows from the outbox and sends them.
 *
 * Invariants: "sending" is durable before the channel is asked; what may have gone out is not sent
 * again before the channel was asked for it; rows of one address go out in order, those of others
 * are not held up. What cannot be delivered is told to the owner once, by what `tell` returns.
 */
import { type Channel, SendError } from "../channels/channel.ts";
import { messageOf } from "../errors.ts";
import type { Failure, NewOutgoing, Outbox, OutgoingRow } from "../store/outbox.ts";
import type { Log } from "./log.ts";

export type SenderOptions = {
  channel: Channel;
  outbox: Outbox;
  /** The rows that tell of a failed one; of an unknown one the sentence says all there is to say. */
  tell: (row: OutgoingRow, failure: string, state: Failure["state"]) => NewOutgoing[];
  log: Log;
  now: () => number;
};

export type Sender = {
  /** Something was added. */
  wake(): void;
  /** Resolves when nothing is being sent and nothing may be sent now. */
  idle(): Promise<void>;
  /** Starts nothing more; resolves when what is under way has ended. */
  stop(): Promise<void>;
};

const MAX_SENDING = 8;
const GIVE_UP_MS = 3 * 86_400_000;
const MAX_WAIT_MS = 60_000;
/** A send that says nothing for so long is in doubt. */
const SEND_MS = 60_000;

export function openSender({ channel, outbox, tell, log, now }: SenderOptions): Sender {
  const sending = new Map<number, Promise<void>>();
  const rests = new Set<() => void>();
  let timer: ReturnType<typeof setTimeout> | undefined;
  let stopped = false;

  const start = (row: OutgoingRow, work: (row: OutgoingRow) => Promise<void>) => {
    if (sending.has(row.id)) return;
    const job = work(row)
      .catch((error: unknown) =>
        log("outbox failed", { channel: channel.name, error: messageOf(error) }),
      )
      .finally(() => {
        sending.delete(row.id);
        pump();
      });
    sending.set(row.id, job);
  };

  function pump(): void {
    if (stopped) return;
    const at = now(); // one instant, or a row could become due between the two questions
    const free = MAX_SENDING - sending.size;
    if (free > 0) for (const row of outbox.due(channel.name, at, free)) start(row, send);
    clearTimeout(timer);
    const next = outbox.nextAt(channel.name, at);
    if (next !== null) timer = setTimeout(pump, Math.min(next - at, MAX_WAIT_MS));
  }

  async function send(row: OutgoingRow): Promise<void> {
    await outbox.begin(row.id);
    try {
      const remoteId = await channel.send(toOutgoing(row), AbortSignal.timeout(SEND_MS));
      await outbox.succeed(row.id, remoteId, now());
      log("sent", { ...factsOf(row), remote: remoteId });
    } catch (error) {
      await settle(row, error);
    }
  }

  async function settle(row: OutgoingRow, error: unknown): Promise<void> {
    // What is no SendError is a fault of ours in the middle of it: it may have gone out.
    const kind = error instanceof SendError ? error.kind : "ambiguous";
    const sentence = messageOf(error);
    log("not sent", { ...factsOf(row), kind, error: sentence });
    if (kind === "ambiguous") {
      await outbox.doubt(row.id, sentence);
      return reconcile(row);
    }
    const tooOld = now() - row.createdAt > GIVE_UP_MS;
    if (kind === "permanent" || tooOld) return fail(row, { state: "failed", error: sentence });
    const asked = error instanceof SendError ? error.afterMs : null;
    await outbox.defer(row.id, now() + (asked ?? backoffMs(row.attempt)), sentence);
  }

  /** Asks the channel what became of a row until it knows. */
  async function reconcile(row: OutgoingRow): Promise<void> {
    for (let tries = 0; !stopped; tries++) {
      try {
        const remoteId = await channel.find(toOutgoing(row), AbortSignal.timeout(SEND_MS));
        log("reconciled", { ...factsOf(row), found: remoteId !== null });
        if (remoteId !== null) return await outbox.succeed(row.id, remoteId, now());
        return await outbox.defer(row.id, now() + backoffMs(row.attempt), "It had not gone out.");
      } catch (error) {
        if (error instanceof SendError && error.kind === "permanent") {
          log("in doubt", factsOf(row));
          return fail(row, { state: "unknown", error: messageOf(error) });
        }
        const asked = error instanceof SendError ? error.afterMs : null;
        await outbox.doubt(row.id, messageOf(error));
        await rest(asked ?? backoffMs(tries));
      }
    }
  }

  const fail = (row: OutgoingRow, failure: Omit<Failure, "notices">): Promise<void> => {
    const notices = row.body.aboutFailure ? [] : tell(row, failure.error, failure.state);
    return outbox.fail(row.id, { ...failure, notices }, now());
  };

  /** Ends early when the sender stops. */
  const rest = (ms: number) =>
    new Promise<void>((resolve) => {
      const end = () => (clearTimeout(timeout), rests.delete(end), resolve());
      const timeout = setTimeout(end, ms);
      rests.add(end);
    });

  for (const row of outbox.ambiguous(channel.name)) start(row, reconcile);
  pump();
  return {
    wake: pump,
    async idle() {
      while (sending.size > 0) await Promise.all(sending.values());
    },
    async stop() {
      stopped = true;
      clearTimeout(timer);
      for (const end of rests) end();
      await Promise.all(sending.values());
    },
  };
}

/** 1 s, 2 s, 4 s … 5 min, with up to a quarter more. */
const backoffMs = (attempt: number): number =>
  Math.min(1000 * 2 ** Math.min(attempt, 20), 300_000) * (1 + Math.random() / 4);

const factsOf = (row: OutgoingRow) => ({
  channel: row.channel,
  conversation: row.conversationId,
  outgoing: row.clientId,
});

const toOutgoing = ({ clientId, address, body, createdAt }: OutgoingRow) => {
  const { aboutFailure: _, ...rest } = body;
  return { clientId, address, createdAt, ...rest };
};
