/**
 * Questions to the owner that a turn waits for: may this call run?
 *
 * Invariants: a question is answered once, by somebody who may, or by time, with no. It lives as
 * long as its turn does: after a restart the call has not run, and the model asks anew.
 */
import type { Answer } from "../types.ts";

export type Questions = {
  /** Puts a question; `post` sends it, with its id. */
  ask(
    conversationId: string,
    post: (id: string) => Promise<void>,
    signal: AbortSignal,
  ): Promise<Answer>;
  /** The newest question that is open in a conversation. */
  openIn(conversationId: string): string | null;
  /** The conversation of an open question. */
  conversationOf(id: string): string | null;
  /** False: it is not open (any more). */
  answer(id: string, yes: boolean): boolean;
};

export function openQuestions(timeoutMs: number): Questions {
  const open = new Map<string, { conversationId: string; resolve(answer: Answer): void }>();
  return {
    async ask(conversationId, post, signal) {
      const id = crypto.randomUUID();
      const { promise, resolve } = Promise.withResolvers<Answer>();
      const late = { allow: false, message: silence(timeoutMs) } as const;
      const timer = setTimeout(() => resolve(late), timeoutMs);
      const leave = () => resolve({ allow: false, interrupt: true });
      signal.addEventListener("abort", leave, { once: true });
      open.set(id, { conversationId, resolve });
      try {
        await post(id);
        return await promise;
      } finally {
        clearTimeout(timer);
        signal.removeEventListener("abort", leave);
        open.delete(id);
      }
    },
    openIn: (conversationId) =>
      [...open].findLast(([, question]) => question.conversationId === conversationId)?.[0] ?? null,
    conversationOf: (id) => open.get(id)?.conversationId ?? null,
    answer(id, yes) {
      const question = open.get(id);
      question?.resolve(yes ? { allow: true } : { allow: false, message: "The owner said no." });
      return question !== undefined;
    },
  };
}

const silence = (ms: number) =>
  `Nobody answered in ${Math.round(ms / 60_000)} minutes, so it is no.`;
