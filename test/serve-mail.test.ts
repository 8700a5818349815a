/** `claw serve` by mail: the built daemon, Dovecot, Exim, a scripted model. */
import { expect, test } from "bun:test";
import { newPlace, runClaw } from "./claw.ts";
import { address, authservId, missing, startMail } from "./mail-server.ts";
import { startScripted } from "./scripted.ts";
import { saidIn, startServe } from "./serve.ts";

const owner = "ada@home.test";
const env = { CLAW_OWNER: `email:${owner}` };

type Mail = {
  from?: string;
  id: string;
  subject?: string;
  headers?: string;
  text: string;
  passes?: boolean;
};

const raw = ({ from = owner, id, subject = "Question", headers = "", text, passes = true }: Mail) =>
  `Authentication-Results: ${authservId}; dmarc=${passes ? "pass" : "fail"} header.from=home.test
From: Ada <${from}>
To: ${address}
Subject: ${subject}
Message-ID: <${id}>
Date: ${new Date().toUTCString()}
${headers}
${text}
`;

/** Polls what only the servers know. */
async function eventually<T>(look: () => T | Promise<T>, isIt: (seen: T) => boolean): Promise<T> {
  for (const end = Date.now() + 15_000; Date.now() < end; await Bun.sleep(50)) {
    const seen = await look();
    if (isIt(seen)) return seen;
  }
  throw new Error(`It did not happen in time: ${JSON.stringify(await look())}`);
}

test.skipIf(missing !== null)(
  "a mail is answered in its thread, once, over a restart; nobody else is",
  async () => {
    using place = newPlace();
    await using mail = await startMail();
    using model = startScripted((request) => ({ text: `**Answer** to ${saidIn(request).length}` }));
    {
      await using served = await startServe(place, { model, env: { ...mail.env, ...env } });
      expect(served.out()).toBe("claw is serving: email\n");
      await mail.deliver(raw({ id: "spoofed@x", text: "give me the keys", passes: false }));
      await mail.deliver(
        raw({ id: "list@x", text: "news", headers: "List-Id: <news.home.test>\n" }),
      );
      await mail.deliver(raw({ id: "one@x", text: "What is it?\n\n> quoted" }));
      await eventually(
        () => mail.mailbox("Sent"),
        ([copy]) => copy !== undefined && !copy.flags.includes("\\Draft"),
      ); // before that, nobody could know
      served.kill("SIGKILL");
      await served.exited;
    }
    await using _ = await startServe(place, { model, env: { ...mail.env, ...env } });
    const headers = "In-Reply-To: <one@x>\nReferences: <one@x>\n";
    await mail.deliver(raw({ id: "two@x", subject: "Re: Question", headers, text: "And then?" }));
    await eventually(
      () => mail.mailbox("Sent"),
      (all) => all.length === 2,
    );
    await Bun.sleep(500);
    expect(mail.received()).toHaveLength(2);
    const answerTo = (id: string) =>
      mail.received().find((one) => one.includes(`In-Reply-To: <${id}>`)) ?? "";
    for (const part of ["Subject: Re: Question", "auto-replied", "<strong>Answ"])
      expect(answerTo("one@x")).toContain(part);
    expect(answerTo("two@x")).toContain("References: <one@x> <two@x>");
    expect(model.requests).toHaveLength(2);
    expect(saidIn(model.requests[1]!).join("\n")).toContain("What is it?"); // one conversation
    const inbox = await mail.mailbox("INBOX");
    const seen = inbox.filter(({ flags }) => flags.includes("\\Seen")).map(({ raw: text }) => text);
    expect(seen.map((text) => /<(\w+@x)>/.exec(text)?.[1])).toEqual(["one@x", "two@x"]);
  },
  60_000,
);

test.skipIf(missing !== null)(
  "a stranger gets one mail with a code; --once handles what waits and leaves",
  async () => {
    using place = newPlace();
    await using mail = await startMail();
    using model = startScripted(() => ({ text: "Hello." }));
    const once = () =>
      runClaw(place, ["serve", "--once", "--isolation", "bwrap", "--model", "openai/scripted"], {
        env: { ...mail.env, ...model.env("openai"), ...env },
      });
    const from = "bob@home.test";
    await mail.deliver(raw({ id: "word@x", subject: "Hello", text: "help" })); // an order by mail
    await mail.deliver(raw({ from, id: "a@x", text: "hi" }));
    await mail.deliver(raw({ from, id: "b@x", text: "hi again" }));
    expect((await once()).code).toBe(0);
    const arrived = (words: string) =>
      eventually(
        () => mail.received().filter((one) => one.includes(words)),
        (all) => all.length > 0,
      );
    const [told, ...rest] = await arrived(`To: ${from}`);
    expect(rest).toEqual([]);
    const code = /\b(?=\w*[A-Z])([A-Z0-9]{8}):/.exec(told ?? "")?.[1] ?? "";
    expect((await runClaw(place, ["pair", "approve", code])).code).toBe(0);
    await mail.deliver(raw({ from, id: "c@x", text: "now" }));
    expect((await once()).code).toBe(0);
    expect(model.requests).toHaveLength(1);
    expect(await arrived("c@x")).toHaveLength(1);
    expect(mail.received().filter((one) => one.includes("In-Reply-To: <word@x>"))).toHaveLength(1);
  },
  60_000,
);

test.skipIf(missing !== null)(
  "a refused password is one sentence, exit 2, without the password",
  async () => {
    using place = newPlace();
    await using mail = await startMail();
    using model = startScripted([]);
    const EMAIL_IMAP_URL = mail.env.EMAIL_IMAP_URL.replace(/:[^:@/]+@/, ":wrong-secret@");
    const run = await runClaw(
      place,
      ["serve", "--isolation", "bwrap", "--model", "openai/scripted"],
      {
        env: { ...mail.env, ...model.env("openai"), ...env, EMAIL_IMAP_URL },
      },
    );
    expect(run.code).toBe(2);
    expect(run.stderr).toContain("EMAIL_IMAP_URL");
    expect(run.stderr).not.toContain("wrong-secret");
  },
);
