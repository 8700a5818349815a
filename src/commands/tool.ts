/**
 * `claw tool` runs one tool under the permission rules; `claw check` says what the rules say.
 * Neither calls a model or opens a session. An edit needs no earlier Read here: the person who
 * types the command has read the file.
 */
import { parseArgs } from "../args.ts";
import { decide } from "../agent/permissions.ts";
import { readPolicy } from "../chat/options.ts";
import { UsageError } from "../errors.ts";
import { openLocalHands } from "../hands/hands.ts";
import type { ToolCall, Verdict } from "../types.ts";

/** Exit code 0, also where the tool failed (`is_error`); 6 where it was refused. */
export async function runTool(argv: string[]): Promise<number> {
  const args = parseArgs(argv);
  const call = readCall("tool", args.words.slice(0, 2));
  if (args.words.length > 2) throw new UsageError(`claw tool takes a name and JSON, no more.`);
  const policy = readPolicy(args);
  const hands = openLocalHands({ roots: policy.roots, needsRead: false });
  try {
    if (!hands.tools.some(({ name }) => name === call.name)) {
      const names = hands.tools.map(({ name }) => name).join(", ");
      throw new UsageError(`There is no tool "${call.name}". There are: ${names}.`);
    }
    const verdict = decide(call, policy);
    if (verdict.decision !== "allow") {
      print({ is_error: true, content: refusalOf(verdict), denied: true });
      return 6;
    }
    const output = await hands.run(call, interruption());
    const { content, isError = false, images, patch } = output;
    print({ is_error: isError, content, images, patch });
    return 0;
  } finally {
    await hands.close();
  }
}

/** Prints the verdict; exit code 0, whatever it is. */
export async function runCheck(argv: string[]): Promise<number> {
  const args = parseArgs(argv);
  const call = readCall("check", args.words.slice(0, 2));
  if (args.words.length > 3)
    throw new UsageError(`claw check takes TOOL, JSON and RULES, no more.`);
  const rules = args.words[2] === undefined ? {} : readObject("RULES", args.words[2]);
  const { decision, rule, reason } = decide(call, readPolicy(args, rules));
  print({ decision, rule, reason });
  return 0;
}

const print = (value: unknown) => process.stdout.write(`${JSON.stringify(value)}\n`);

const refusalOf = ({ decision, reason, suggestion }: Verdict): string =>
  decision === "ask" && suggestion
    ? `${reason} --allowedTools ${JSON.stringify(suggestion)} would allow it.`
    : reason;

function readCall(command: string, [name, json]: string[]): ToolCall {
  if (name === undefined || json === undefined)
    throw new UsageError(`claw ${command} needs a tool's name and its arguments as JSON.`);
  return { type: "tool_call", id: "cli", name, input: readObject("the arguments", json) };
}

function readObject(what: string, json: string): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(json);
    if (typeof value === "object" && value !== null && !Array.isArray(value))
      return value as Record<string, unknown>;
  } catch (error) {
    throw new UsageError(`${what} are no JSON: ${(error as Error).message}. They were: ${json}`);
  }
  throw new UsageError(`${what} have to be a JSON object such as {"command":"ls"}, not ${json}.`);
}

function interruption(): AbortSignal {
  const controller = new AbortController();
  for (const name of ["SIGINT", "SIGTERM"] as const)
    process.once(name, () => controller.abort(new Error("Interrupted.")));
  return controller.signal;
}
