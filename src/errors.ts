/**
 * The two errors that are not bugs. Everything else that is thrown is one: it fails the turn, the
 * process lives where it can, and the exit code is 1.
 */

/** A person's mistake. The message is one sentence that names the value and what would be right. */
export class UsageError extends Error {
  override name = "UsageError";
}

/** The model's provider failed for good. The message names the cause and what to do next. */
export class ProviderError extends Error {
  override name = "ProviderError";
  /** The HTTP status, or null where there was no answer. */
  readonly status: number | null;

  constructor(message: string, status: number | null = null, cause?: unknown) {
    super(message, { cause });
    this.status = status;
  }
}

/** What went wrong, in one line without a stack. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
