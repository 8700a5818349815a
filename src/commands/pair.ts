/**
 * `claw pair`: strangers that wait for the owner's word. What is decided holds at once, whether a
 * daemon serves or not.
 */
import { clawHomeOf } from "../agent/session.ts";
import { openDatabase } from "../store/database.ts";
import { messageOf, UsageError } from "../errors.ts";
import { escapeLine } from "../escape.ts";
import { type Pairing, type People, peopleIn } from "../store/people.ts";
import { askDaemon } from "../serve/socket.ts";

export async function runPair(argv: string[]): Promise<number> {
  const json = argv.includes("--json");
  const [action = "list", code, ...rest] = argv.filter((arg) => arg !== "--json");
  const wantsCode = action === "approve" || action === "deny";
  const odd = [action, code ?? "", ...rest].find((arg) => arg.startsWith("-"));
  if (odd !== undefined) throw new UsageError(`claw pair knows no flag ${odd}, only --json.`);
  if (!wantsCode && action !== "list")
    throw new UsageError(`claw pair knows no "${action}": list, approve CODE or deny CODE.`);
  if (wantsCode !== (code !== undefined) || rest.length > 0)
    throw new UsageError(`claw pair ${action} takes ${wantsCode ? "one CODE" : "nothing more"}.`);

  const clawHome = clawHomeOf(process.env);
  const opened = openDatabase(clawHome);
  try {
    const people = peopleIn(opened);
    if (code === undefined) list(people, json);
    else await decide({ people, clawHome, code, approved: action === "approve", json });
  } finally {
    opened.close();
  }
  return 0;
}

function list(people: People, json: boolean): void {
  const waiting = people.waiting(Date.now());
  for (const pairing of waiting) print(pairing, json, `waits until ${clock(pairing)}`);
  if (waiting.length === 0 && !json) console.error("Nobody waits to be let in.");
}

type Decision = {
  people: People;
  clawHome: string;
  code: string;
  approved: boolean;
  json: boolean;
};

async function decide({ people, clawHome, code, approved, json }: Decision): Promise<void> {
  const pairing = await people.decide(code, approved, Date.now());
  print(pairing, json, approved ? "may speak to claw now" : "was turned away");
  try {
    await askDaemon(clawHome, "/changed", "POST");
  } catch (error) {
    console.error(`claw: ${messageOf(error)} It learns of this at its next start.`);
  }
}

const clock = ({ expiresAt }: Pairing) => new Date(expiresAt).toTimeString().slice(0, 5);

/** Names and addresses are a stranger's own words. */
function print({ expiresAt, ...pairing }: Pairing, json: boolean, state: string): void {
  const { code, channel, address, name } = pairing;
  const row = { ...pairing, expires: new Date(expiresAt).toISOString() };
  console.log(
    json
      ? JSON.stringify(row)
      : escapeLine(`${code}  ${channel}:${address}  ${name.slice(0, 60)}  ${state}`),
  );
}
