/**
 * The loop between a model and hands that are both scripted at their interfaces: what runs side by
 * side, what waits, what is logged in which order.
 */
import { expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { runTurn, type TurnOptions } from "../src/agent/loop.ts";
import { openSession } from "../src/agent/session.ts";
import { openStore } from "../src/store/sessions.ts";
import type { AssistantPart, Hands, Model, Output, ToolCall } from "../src/types.ts";

const usage = { inputTokens: 1, outputTokens: 1, cacheReadTokens: 0, cacheWriteTokens: 0 };
const inputs: Record<string, Record<string, unknown>> = {
  Read: { file_path: "a.txt" },
  Grep: { pattern: "a" },
  Bash: { command: "true" },
};
const call = (id: string, name: string): ToolCall => ({
  type: "tool_call",
  id,
  name,
  input: inputs[name] ?? {},
});

function scriptedModel(answers: AssistantPart[][]): Model {
  let next = 0;
  return {
    id: "scripted",
    contextTokens: 1000,
    price: null,
    async *stream() {
      yield { type: "answer", parts: answers[next++] ?? [], stopReason: "end", usage };
    },
  };
}

/** Hands whose calls take 30 ms each and note when they begin and end. */
function notingHands(notes: string[]): Hands {
  const tools = ["Read", "Grep", "Bash"].map((name) => ({ name, description: "", schema: {} }));
  return {
    tools,
    isReadOnly: (name) => name !== "Bash",
    isRunnable: () => true,
    async run({ id }, signal) {
      notes.push(`+${id}`);
      await Bun.sleep(30);
      signal.throwIfAborted();
      notes.push(`-${id}`);
      return { content: `result of ${id}` };
    },
    preview: async () => null,
    close: async () => {},
  };
}

async function play(answers: AssistantPart[][], options: Partial<TurnOptions> = {}) {
  const folder = mkdtempSync(join(tmpdir(), "claw-loop-"));
  const store = await openStore(join(folder, "home"));
  const notes: string[] = [];
  const emitted: Output[] = [];
  const rules = { allow: [], ask: [], deny: [] };
  try {
    const session = await openSession({
      store,
      cwd: folder,
      clawHome: join(folder, "home"),
      model: scriptedModel(answers),
      mode: "unsafe",
      rules,
    });
    await session.hands.close();
    const scripted = Object.assign(session, { hands: notingHands(notes) });
    const result = await runTurn(scripted, [{ type: "text", text: "go" }], {
      emit: (output) => emitted.push(output),
      ask: async () => ({ allow: false }),
      signal: new AbortController().signal,
      ...options,
    });
    const logged = (await store.readEvents(session.info.id)).map(({ event }) => event);
    await session.close();
    return { result, notes, emitted, logged };
  } finally {
    await store.close();
    rmSync(folder, { recursive: true });
  }
}

test("neighbouring read-only calls run side by side, all others alone and in order", async () => {
  const calls = [call("a", "Read"), call("b", "Grep"), call("c", "Bash"), call("d", "Read")];
  const { notes } = await play([calls, [{ type: "text", text: "done" }]]);
  expect(notes.slice(0, 2)).toEqual(["+a", "+b"]);
  expect(notes.slice(4)).toEqual(["+c", "-c", "+d", "-d"]);
});

test("each start is logged before its tool runs, each result after, and what is shown is logged", async () => {
  const { logged, emitted } = await play([
    [{ type: "text", text: "hm" }, call("a", "Bash"), call("b", "Bash")],
    [{ type: "text", text: "done" }],
  ]);
  const marks = logged.map((event) => ("id" in event ? `${event.type} ${event.id}` : event.type));
  expect(marks.filter((mark) => mark !== "context")).toEqual([
    "input",
    "text",
    "tool_call a",
    "tool_call b",
    "answer",
    "tool_start a",
    "tool_result a",
    "tool_start b",
    "tool_result b",
    "text",
    "answer",
    "turn_end",
  ]);
  expect(emitted).toEqual(logged.filter(({ type }) => type !== "context"));
});

test("what is typed while tools run reaches the model at the next step, after their results", async () => {
  const queue = [[], [[{ type: "text" as const, text: "also this" }]], []];
  const { logged } = await play([[call("a", "Bash")], [{ type: "text", text: "done" }]], {
    takeSteering: () => queue.shift() ?? [],
  });
  const types = logged.map((event) => (event.type === "input" ? event.origin : event.type));
  expect(types.indexOf("steering")).toBe(types.indexOf("tool_result") + 1);
});

test("an interruption during a tool leaves every call with a result, and the turn ended", async () => {
  const controller = new AbortController();
  const stop = () => controller.abort(new Error("stop"));
  const { result, logged } = await play([[call("a", "Bash"), call("b", "Bash")]], {
    signal: controller.signal,
    emit: ({ type }) => void (type === "tool_start" && setTimeout(stop, 5)),
  });
  expect(result.reason).toBe("interrupted");
  const results = logged.filter((event) => event.type === "tool_result");
  expect(results.map(({ id, content }) => [id, content.includes("had no effect")])).toEqual([
    ["a", false],
    ["b", true],
  ]);
  expect(logged.at(-1)?.type).toBe("turn_end");
});

test("an answer that is empty is asked for once more, then said", async () => {
  const { result, logged } = await play([[], []]);
  expect(result).toMatchObject({ reason: "no_answer", steps: 2 });
  expect(result.detail).toContain("answered with nothing");
  expect(logged.filter(({ type }) => type === "answer")).toHaveLength(2);
});
