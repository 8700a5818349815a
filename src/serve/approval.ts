/** A question to the owner about a call, put into the conversation with all that would happen. */
import { escapeText } from "../escape.ts";
import type { Answer, Question } from "../types.ts";
import type { Work } from "./daemon.ts";
import { letter } from "./letters.ts";

/** Resolves with the owner's word, or with no when none comes in time. */
export async function askOwner(
  work: Work,
  question: Question,
  signal: AbortSignal,
): Promise<Answer> {
  const { daemon, conversation } = work;
  daemon.log("question", { conversation: conversation.id, tool: question.call.name });
  const post = async (id: string): Promise<void> => {
    await daemon.outbox.add(letter(work, `question-${id}`, describe(question), id), daemon.now());
    daemon.wakeSenders();
  };
  return daemon.questions.ask(conversation.id, post, signal);
}

function describe({ call, verdict, patch }: Question): string {
  const { command } = call.input;
  const input = typeof command === "string" ? command : JSON.stringify(call.input, null, 2);
  const shown = escapeText(patch ?? input);
  const fence = "`".repeat(
    Math.max(3, ...[...shown.matchAll(/`+/g)].map(([run]) => run.length + 1)),
  );
  return `May I? ${escapeText(verdict.reason)}\n\n${fence}\n${shown}\n${fence}\n\nAnswer **yes** or **no**; no answer is a no.`;
}
