/**
 * The demo: a scripted model that is there when no other is. Off the wire and deterministic, it
 * works one small real task with the real tools: it reads a failing test, runs it, mends the code,
 * sees the test pass, and sums up.
 *
 * It brings its own scratch folder along, and what it does next depends on the messages alone, as
 * with any model; nothing else in the program knows that it is scripted.
 */
import { existsSync, mkdirSync, realpathSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { AssistantPart, Delta, Message, Model, ModelAnswer, ModelRequest } from "../types.ts";

const code = `# slug: a title as it stands in an address
slug() {
  printf '%s' "$1" | tr 'A-Z' 'a-z' | tr ' ' '_'
}
`;

const test = `#!/bin/sh
. "$(dirname "$0")/slug.sh"
got=$(slug "Hello Small World")
if [ "$got" = "hello-small-world" ]; then
  echo "ok: $got"
else
  echo "FAILED: wanted hello-small-world, got $got"
  exit 1
fi
`;

/** The scratch folder is made with the first answer; the task in it can be worked once. */
export function openDemo(): Model {
  const folder = join(realpathSync(tmpdir()), `claw-demo-${crypto.randomUUID().slice(0, 8)}`);
  return {
    id: "demo",
    folder,
    contextTokens: 100_000,
    price: { input: 0, output: 0 },
    stream: (request, signal) => play(request, signal, folder),
  };
}

/** Fails if the folder is there already, so that nobody else can have planted it. */
function makeProject(folder: string): void {
  mkdirSync(folder, { mode: 0o700 });
  writeFileSync(join(folder, "slug.sh"), code);
  writeFileSync(join(folder, "slug.test.sh"), test);
}

/** A line of the script: what is said, and the call it leads to, if any. */
type Line = { say: string; call?: { name: string; input: Record<string, unknown> } };

function scriptFor(folder: string): Line[] {
  const file = (name: string) => join(folder, name);
  const run = { name: "Bash", input: { command: `sh ${file("slug.test.sh")}` } };
  return [
    {
      say: `I am a scripted demo, but the tools are real. There is a small project with a failing test in \`${folder}\`. First I read the test.`,
      call: { name: "Read", input: { file_path: file("slug.test.sh") } },
    },
    { say: "Now I run it, to see it fail.", call: run },
    {
      say: "It wants hyphens and gets underscores. Here is the code:",
      call: { name: "Read", input: { file_path: file("slug.sh") } },
    },
    {
      say: "The second `tr` puts the wrong character in. I change just that.",
      call: {
        name: "Edit",
        input: { file_path: file("slug.sh"), old_string: "tr ' ' '_'", new_string: "tr ' ' '-'" },
      },
    },
    { say: "And once more the test:", call: run },
    {
      say: [
        "The test passes.",
        "",
        "- **Cause**: `slug` replaced spaces by `_` where the test wants `-`.",
        "- **Change**: one character in `slug.sh:3`.",
        "",
        "That is all this demo can do. With a real model, `claw` works like this in your own folder.",
      ].join("\n"),
    },
  ];
}

const epilogue =
  "This demo knows one task only, and has worked it. For a real model: set `ANTHROPIC_API_KEY` or " +
  "another provider's key, start Ollama, LM Studio or vLLM, or point `OPENAI_BASE_URL` at a server " +
  "that speaks OpenAI's protocol; then start `claw` again.";

/** Speaks the line that the messages call for, word by word. */
async function* play(
  request: ModelRequest,
  signal: AbortSignal,
  folder: string,
): AsyncIterable<Delta | ModelAnswer> {
  const line = nextLine(request.messages, scriptFor(folder));
  if (!existsSync(folder)) makeProject(folder);
  for (const word of line.say.split(/(?<=\s)/)) {
    signal.throwIfAborted();
    await Bun.sleep(12);
    yield { type: "text_delta", text: word };
  }
  signal.throwIfAborted();
  const parts: AssistantPart[] = [{ type: "text", text: line.say }];
  const id = `demo_${request.messages.length}`;
  if (line.call) parts.push({ type: "tool_call", id, ...line.call });
  yield {
    type: "answer",
    parts,
    stopReason: line.call ? "tool_calls" : "end",
    usage: { inputTokens: 0, outputTokens: 0, cacheReadTokens: 0, cacheWriteTokens: 0 },
  };
}

function nextLine(messages: readonly Message[], script: Line[]): Line {
  const results = messages
    .flatMap(({ role, parts }) => (role === "user" ? parts : []))
    .filter((part) => part.type === "tool_result");
  const spoken = messages.filter(({ role }) => role === "assistant").length;
  const last = results.at(-1);
  const failed = last?.isError === true && results.length !== 2; // the first run has to fail
  const over = spoken > results.length; // the last answer called no tool
  if (over) return { say: epilogue };
  if (failed) return { say: `I stop here: ${last.content}` };
  return script[results.length] ?? { say: epilogue };
}
