/**
 * Orders to claw itself, in a conversation: `stop`, `/model gpt-5`, `approve ABCD2345`. Pure: what a
 * text means, and nothing of what follows from it.
 *
 * Invariant: without a slash only a text that is nothing else is an order; "stop the server" and
 * "new idea" are for the model.
 */
import { parseMode } from "../agent/permissions.ts";
import { UsageError } from "../errors.ts";

export type Word =
  | { name: "stop" | "status" | "new" | "undo" | "cost" | "help" }
  /** null: show what it is. */
  | { name: "model" | "mode"; value: string | null }
  | { name: "approve" | "deny"; code: string }
  | { name: "yes" | "no" }
  | { name: "unknown"; text: string };

export const help = `You can just write to me. These words are orders, alone or after a "/":
- **stop** ends what is running
- **status** says what runs and waits
- **new** begins a new conversation; **undo** takes back the last turn
- **model** *name*, **mode** *read-only, ask, edit or unsafe* (the owner's word)
- **cost** says what today has cost
- **yes**, **no** answer a question
- **approve** *code*, **deny** *code* let somebody in, or not (the owner's word)`;

const plain = ["stop", "status", "new", "undo", "cost", "help"] as const;
const yes = /^(y|yes|yep|ok|okay|sure|ja|oui|si|sí|👍)$/;
const no = /^(n|no|nope|nein|non|👎)$/;

/** The order that a text is; null: it is for the model. */
export function readWord(text: string): Word | null {
  const slashed = text.trim().startsWith("/");
  const line = text
    .trim()
    .replace(/^\//, "")
    .replace(/[.!?\s]+$/, "");
  const [first = "", ...rest] = line.split(/\s+/);
  const name = first.toLowerCase();
  const argument = rest.join(" ");
  if (/\n/.test(line) || rest.length > 1) return slashed ? unknown(text) : null;
  if (name === "model")
    return slashed || /^\S+\/\S+$/.test(argument || "/") || !argument
      ? valued("model", argument)
      : null;
  if (name === "mode")
    return slashed || !argument || isMode(argument) ? valued("mode", argument) : null;
  if ((name === "approve" || name === "deny") && (slashed || /^[a-z\d]{8}$/i.test(argument)))
    return { name, code: argument };
  if (argument) return slashed ? unknown(text) : null;
  if (yes.test(name)) return { name: "yes" };
  if (no.test(name)) return { name: "no" };
  const known = plain.find((word) => word === name);
  if (known) return { name: known };
  return slashed ? unknown(text) : null;
}

const valued = (name: "model" | "mode", argument: string): Word => ({
  name,
  value: argument || null,
});

/** "/usr/bin is full" is no order. */
const unknown = (text: string): Word | null =>
  /^\/[a-z]+(\s|$)/i.test(text.trim()) ? { name: "unknown", text: text.trim() } : null;

function isMode(text: string): boolean {
  try {
    parseMode(text);
    return true;
  } catch (error) {
    if (error instanceof UsageError) return false;
    throw error;
  }
}
