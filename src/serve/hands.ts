/**
 * The hands of every conversation: a sandbox of its own each, with the mounts and ways out that
 * config gives it, or, where the owner named `--isolation none`, this process.
 *
 * Invariant: a conversation's sandbox stays the same from turn to turn; a clean end leaves none.
 */
import { rmSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { config } from "../config.ts";
import { UsageError } from "../errors.ts";
import { openLocalHands } from "../hands/hands.ts";
import { openEgress } from "../hands/proxy.ts";
import { openSandboxHands } from "../hands/sandbox.ts";
import type { Builder } from "../hands/walls.ts";
import { openWarm } from "../hands/warm.ts";
import { INSIDE_BOX } from "../hands/wire.ts";
import { installOf, reap, type WayRequest, type Yard } from "../hands/yard.ts";
import type { Opened } from "../store/database.ts";
import { egressIn } from "../store/egress.ts";
import type { Hands, MountConfig } from "../types.ts";
import { settingsOf } from "./access.ts";
import type { Log } from "./log.ts";

/** A conversation's id as a name that is safe for every file system. */
export function folderName(id: string): string {
  const plain = id.replaceAll(/[^A-Za-z0-9.-]+/g, "-").replace(/^[.-]+/, "");
  return `${plain.slice(0, 80)}-${Bun.hash(id).toString(36).slice(0, 6)}`;
}

export type ConversationHands = {
  of(conversationId: string, folder: string): Hands;
  /** Forgets what is too old to be asked for. */
  tidy(): Promise<void>;
  close(): Promise<void>;
};

/** How long the rows about what left the sandboxes are kept. */
const AUDIT_MS = 90 * 86_400_000;

export type HandsOptions = {
  clawHome: string;
  opened: Opened;
  /** null: no walls, by the owner's word. */
  builder: Builder | null;
  /** Conversations in the middle of a turn: what their sandboxes hold is still owed. */
  inTurn: readonly string[];
  /** A secret by its variable's name, as it is now. */
  secretOf: (name: string) => string | undefined;
  log: Log;
  now: () => number;
};

/** Takes up or ends what an earlier daemon left. */
export async function openHands(options: HandsOptions): Promise<ConversationHands> {
  const { clawHome, builder, log } = options;
  const all = new Map<string, Hands>();
  const boxes = join(clawHome, "boxes");
  if (builder === null) {
    rmSync(boxes, { recursive: true, force: true }); // of calls that run here no box knows
    return {
      of: (id, folder) => keep(all, id, () => openLocalHands({ roots: [folder] })),
      tidy: async () => {},
      close: () => closeAll(all),
    };
  }
  checkNames();
  const egress = openWaysOut(options);
  const yard: Yard = {
    builder: async () => builder,
    install: installOf(clawHome),
    boxes,
    home: homedir(),
    clawHome,
    warm: openWarm(config.serve.maxWarm),
    isGuest: false,
    log,
  };
  await reap(yard, builder, new Set(options.inTurn.map(folderName)));
  return {
    of: (id, folder) =>
      keep(all, id, () => {
        const { mounts: names, egress: routes } = settingsOf(id);
        const mounts = mountsOf(names);
        const onProgress = (line: string) => log("preparing", { conversation: id, what: line });
        const inside = `${INSIDE_BOX}/net`;
        const openWay = (ask: WayRequest) => egress.open({ ...ask, inside, conversation: id });
        return openSandboxHands(
          { ...yard, openWay },
          {
            folder,
            name: folderName(id),
            mounts,
            routes,
            onProgress,
          },
        );
      }),
    tidy: () => egressIn(options.opened).forget(options.now() - AUDIT_MS),
    async close() {
      await closeAll(all);
      await egress.close();
    },
  };
}

/** What a conversation's settings name has to be in config; said before anything starts. */
function checkNames(): void {
  const { sandbox, egress, serve } = config;
  for (const [pattern, settings] of Object.entries(serve.conversations))
    for (const [kind, known] of [
      ["mounts", sandbox.mounts],
      ["egress", egress.routes],
    ] as const)
      for (const name of settings[kind] ?? [])
        if (!Object.hasOwn(known, name))
          throw new UsageError(
            `config.serve.conversations["${pattern}"].${kind} names "${name}"; there is ${Object.keys(known).join(", ") || "none"}.`,
          );
}

const mountsOf = (names: readonly string[]): Record<string, MountConfig> =>
  Object.fromEntries(
    names.flatMap((name) => {
      const mount = config.sandbox.mounts[name];
      return mount ? [[name, mount]] : [];
    }),
  );

/** Hands that were closed are nobody's; a sandbox that has ended costs a few hundred bytes. */
function keep(all: Map<string, Hands>, id: string, open: () => Hands): Hands {
  const hands = all.get(id) ?? open();
  all.set(id, hands);
  return hands;
}

const closeAll = async (all: Map<string, Hands>): Promise<void> => {
  await Promise.all([...all.values()].map((hands) => hands.close()));
};

function openWaysOut({ opened, secretOf, log, now }: HandsOptions) {
  const audit = egressIn(opened);
  const { routes, ...limits } = config.egress;
  return openEgress({
    routes,
    limits,
    secretOf,
    audit: (row) => void audit.add(row),
    spent: (conversation) => audit.spent(conversation, now()),
    now,
    log,
  });
}
