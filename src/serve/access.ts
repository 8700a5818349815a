/**
 * Who may speak, and with what: the owner by CLAW_OWNER, others by pairing, conversations by config.
 *
 * Invariant: an address counts only as its channel vouches for it (Slack's user id, a mail address
 * whose mail was authenticated). Nobody is let in by what a message says.
 */
import { config } from "../config.ts";
import { UsageError } from "../errors.ts";
import type { People } from "../store/people.ts";
import type { ConversationConfig } from "../types.ts";

export type Owner = { channel: string; address: string };

export type Settings = Required<Omit<ConversationConfig, "model">> & { model: string | null };

export type Access = {
  readonly owners: readonly Owner[];
  isOwner(channel: string, address: string): boolean;
  /** The owner, or somebody the owner let in. */
  isKnown(channel: string, address: string): boolean;
  mayCommand(conversationId: string, channel: string, address: string): boolean;
  settings(conversationId: string): Settings;
};

export function openAccess(owners: readonly Owner[], people: People): Access {
  const isOwner = (channel: string, address: string) =>
    owners.some((owner) => owner.channel === channel && owner.address === address);
  const isKnown = (channel: string, address: string) =>
    isOwner(channel, address) || people.isKnown(channel, address);
  return {
    owners,
    isOwner,
    isKnown,
    mayCommand(conversationId, channel, address) {
      const { who } = settingsOf(conversationId);
      if (who === "owner") return isOwner(channel, address);
      if (who === "people") return isKnown(channel, address);
      return isOwner(channel, address) || who.includes(address);
    },
    settings: settingsOf,
  };
}

/** CLAW_OWNER as addresses: "slack:U123,email:me@x.org". Throws UsageError for what is none. */
export function readOwners(text: string | undefined): Owner[] {
  const parts = (text ?? "").split(",").map((part) => part.trim());
  return parts.filter(Boolean).map((part) => {
    const [, channel, address] = /^([a-z]+):(\S+)$/.exec(part) ?? [];
    if (channel && address)
      return { channel, address: address.includes("@") ? address.toLowerCase() : address };
    throw new UsageError(
      `CLAW_OWNER has "${part}"; it takes addresses on channels such as slack:U123 or email:me@x.org, separated by commas.`,
    );
  });
}

/** The entries of config whose pattern fits, later ones on top. */
export function settingsOf(conversationId: string): Settings {
  const fitting = Object.entries(config.serve.conversations)
    .filter(([pattern]) =>
      pattern.endsWith("*")
        ? conversationId.startsWith(pattern.slice(0, -1))
        : conversationId === pattern,
    )
    .map(([, settings]) => settings);
  const defaults: Settings = {
    who: "owner",
    mode: "ask",
    tools: null,
    mounts: [],
    egress: [],
    mcp: [],
    model: null,
    tokensPerDay: null,
    usdPerDay: null,
  };
  return Object.assign(defaults, ...fitting);
}
