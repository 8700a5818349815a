/** The fold of events into messages: kept up as events come, it equals the fold from scratch. */
import { describe, expect, test } from "bun:test";
import { closeCalls, emptyFold, fold } from "../src/agent/fold.ts";
import type { Event } from "../src/types.ts";

const input = (text: string): Event => ({
  type: "input",
  parts: [{ type: "text", text }],
  origin: "person",
});
const call = (id: string): Event => ({ type: "tool_call", id, name: "Read", input: { id } });
const result = (id: string): Event => ({
  type: "tool_result",
  id,
  name: "Read",
  content: `content of ${id}`,
  isError: false,
});
const answer: Event = {
  type: "answer",
  model: "m",
  stopReason: "end",
  usage: { inputTokens: 1, outputTokens: 1, cacheReadTokens: 0, cacheWriteTokens: 0 },
  costUsd: null,
};
const end: Event = { type: "turn_end", reason: "done" };

const foldAll = (events: Event[]) => {
  const state = emptyFold();
  for (const event of events) fold(state, structuredClone(event));
  return state;
};

const conversation: Event[] = [
  { type: "context", name: "environment", text: "Linux" },
  input("go"),
  { type: "thinking", text: "hm", provider: "p" },
  { type: "text", text: "reading" },
  call("a"),
  call("b"),
  answer,
  { type: "tool_start", id: "a" },
  { type: "tool_start", id: "b" },
  result("b"),
  result("a"),
  { ...input("also this"), origin: "steering" } as Event,
  { type: "text", text: "done" },
  answer,
  end,
];

describe("fold", () => {
  test("one step at a time equals the fold from scratch, at every length", () => {
    const state = emptyFold();
    for (const [index, event] of conversation.entries()) {
      fold(state, structuredClone(event));
      expect(state).toEqual(foldAll(conversation.slice(0, index + 1)));
    }
  });

  test("roles alternate, and results directly follow their calls", () => {
    const { messages } = foldAll(conversation);
    expect(messages.map(({ role }) => role)).toEqual(["user", "assistant", "user", "assistant"]);
    expect(messages[2]?.parts.map(({ type }) => type)).toEqual([
      "tool_result",
      "tool_result",
      "text",
    ]);
  });

  test("what is open is known at every length, and closing it leaves nothing open", () => {
    for (let length = 0; length <= conversation.length; length++) {
      const events = conversation.slice(0, length);
      const { open } = foldAll(events);
      const closing = closeCalls(open, { started: "unknown", waiting: "not run" });
      const healed = foldAll([...events, ...closing]);
      expect(healed.open.size).toBe(0);
      for (const [index, message] of healed.messages.entries()) {
        if (message.role !== "assistant") continue;
        const calls = message.parts.filter((part) => part.type === "tool_call").map(({ id }) => id);
        const next = healed.messages[index + 1]?.parts ?? [];
        const answered = next.flatMap((part) => (part.type === "tool_result" ? [part.id] : []));
        expect(answered.toSorted()).toEqual(calls.toSorted());
      }
    }
  });

  test("a call that had started is told from one that had not", () => {
    const { open } = foldAll(conversation.slice(0, 8));
    const texts = closeCalls(open, { started: "unknown", waiting: "not run" });
    expect(texts.map((event) => event.type === "tool_result" && event.content)).toEqual([
      "unknown",
      "not run",
    ]);
  });

  test("a result nobody asked for is left out", () => {
    expect(foldAll([input("go"), result("x")])).toEqual(foldAll([input("go")]));
  });

  test("a compaction keeps the context and the last input, word for word", () => {
    const { messages } = foldAll([...conversation, { type: "compaction", summary: "did it" }]);
    const texts = messages[0]?.parts.map((part) => (part.type === "text" ? part.text : ""));
    expect(messages).toHaveLength(1);
    expect(texts).toContain("Linux");
    expect(texts?.join("\n")).toContain("did it");
    expect(texts?.at(-1)).toBe("also this");
  });
});
