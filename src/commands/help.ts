/** `claw help`: what a person can type. Nothing here that does not work. */
import { UsageError } from "../errors.ts";
import { config } from "../config.ts";

const overview = `${config.greeting}

  claw [chat] [PROMPT]        work in this folder, in the terminal
  claw -p [PROMPT]            one run without a terminal; piped stdin is added to the prompt
  claw sessions list|show ID|search TEXT|export ID|delete ID
  claw tool NAME JSON         run one tool under the permission rules, without a model
  claw check TOOL JSON [RULES]  what the permission rules say to a call; runs nothing
  claw fork DIR               write the source this binary was built from
  claw build [DIR]            build a binary from such a folder
  claw help [COMMAND], claw --version

Models: --model provider/name, or CLAW_MODEL. Without one, the first provider whose key is set
(ANTHROPIC_API_KEY, OPENAI_API_KEY, …) or a local server (Ollama, LM Studio, vLLM) is used.
\`claw help chat\` lists the flags.
`;

const chat = `claw chat [PROMPT] [FLAGS]        claw -p [PROMPT] [FLAGS]

Model
  --model M                   provider/name, or a bare name
  --fallback-model M          takes over when the provider fails
  --system-prompt S           replaces the system prompt; --append-system-prompt S adds to it
Permissions
  --permission-mode MODE      read-only (plan), ask (default), edit (acceptEdits),
                              unsafe (bypassPermissions), dontAsk
  --allowedTools R…           rules such as "Read", "Bash(git log *)", "Edit(src/**)"
  --disallowedTools R…        the same, denied
  --dangerously-skip-permissions   the mode unsafe
  --add-dir D…                further folders that tools may work in
Sessions
  -c, --continue              the newest session of this folder
  -r, --resume [ID]           a session by its id, or the first 8 characters of it
  --fork-session              go on in a copy
  --session-id UUID           the id of the new session
Headless (-p)
  --output-format text|json|stream-json
  --input-format text|stream-json
  --include-partial-messages  stream_event lines in stream-json
  --permission-prompt-tool stdio   questions go to the other side of stream-json
  --max-turns N               model calls at most; exit code 5
  --max-budget-usd X          dollars at most; exit code 4
  --verbose                   tool calls on stderr
Terminal
  --no-markdown               answers as they come

Exit codes: 0 done, 1 failure, 2 usage, 3 provider, 4 budget, 5 turns, 6 a call was refused,
130 interrupted. A prompt that begins with "-" goes after "--".
`;

const topics: Record<string, string> = {
  chat,
  sessions: `claw sessions list                every session, newest first; --json for rows
claw sessions show ID             a session as plain text
claw sessions search TEXT         sessions in which all the words occur
claw sessions export ID           its events as JSON lines
claw sessions delete ID
`,
  tool: `claw tool NAME JSON [FLAGS]

Runs one tool in this folder under the permission rules, and prints {"is_error", "content"} as one
JSON object. chat's --permission-mode, --allowedTools, --disallowedTools and --add-dir count.
Exit code 6: refused. Example: claw tool Read '{"file_path":"README.md"}'
`,
  check: `claw check TOOL JSON [RULES] [FLAGS]

Prints {"decision":"allow|ask|deny","rule":…,"reason":…} for a call and runs nothing.
RULES: {"allow":[],"ask":[],"deny":[],"mode":"ask"}
Example: claw check Bash '{"command":"git log && rm -rf x"}' '{"allow":["Bash(git log *)"]}'
`,
  fork: `claw fork DIR                     the exact source of this binary, with all it needs to build
claw build [DIR]                  builds DIR/dist/claw from such a folder; needs no network
`,
};

export async function printHelp([topic]: string[]): Promise<number> {
  const name = topic === "build" ? "fork" : topic;
  if (name === undefined || name === "help") {
    console.log(overview.trimEnd());
    return 0;
  }
  const text = Object.hasOwn(topics, name) ? topics[name] : undefined;
  if (text === undefined)
    throw new UsageError(`There is no command "${topic}". \`claw help\` lists them.`);
  console.log(text.trimEnd());
  return 0;
}
