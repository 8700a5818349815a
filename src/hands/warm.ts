/**
 * Which sandboxes are kept warm: so many at a time. One that needs a place takes that of the one that
 * was used longest ago and is idle; where all are busy it waits for the first that is not.
 */
export type Tenant = {
  readonly isIdle: boolean;
  /** Resolves when it is gone. */
  end(why: string): Promise<void>;
};

export type Warm = {
  /** Resolves when the tenant has a place, which is then the one used last. */
  take(tenant: Tenant, signal: AbortSignal): Promise<void>;
  free(tenant: Tenant): void;
  /** A tenant has become idle. */
  changed(): void;
};

export function openWarm(places: number): Warm {
  const tenants = new Set<Tenant>(); // the one used longest ago comes first
  let waiting = Promise.withResolvers<void>();
  const wake = (): void => {
    waiting.resolve();
    waiting = Promise.withResolvers();
  };
  const claim = (tenant: Tenant): Tenant | "free" | null => {
    if (tenants.delete(tenant) || tenants.size < places) return (tenants.add(tenant), "free");
    const oldest = [...tenants].find(({ isIdle }) => isIdle);
    if (!oldest) return null;
    tenants.delete(oldest);
    tenants.add(tenant);
    return oldest;
  };
  return {
    async take(tenant, signal) {
      for (;;) {
        const claimed = claim(tenant);
        if (claimed === "free") return;
        if (claimed) return claimed.end("another needs its place");
        await orAbort(waiting.promise, signal);
      }
    },
    free(tenant) {
      tenants.delete(tenant);
      wake();
    },
    changed: wake,
  };
}

/** `promise`, or the signal's reason if that comes first. */
export async function orAbort<Value>(promise: Promise<Value>, signal: AbortSignal): Promise<Value> {
  signal.throwIfAborted();
  const aborted = Promise.withResolvers<never>();
  const onAbort = () => aborted.reject(signal.reason);
  signal.addEventListener("abort", onAbort, { once: true });
  try {
    return await Promise.race([promise, aborted.promise]);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}
