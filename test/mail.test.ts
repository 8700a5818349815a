/** Mails as tables: who is believed, what is ignored, what is new in it, and how it is answered. */
import { describe, expect, test } from "bun:test";
import MailComposer from "nodemailer/lib/mail-composer";
import { type Outgoing, SendError } from "../src/channels/channel.ts";
import { letterOf, messageIdOf, reasonToIgnore, replyOf } from "../src/channels/mail-reply.ts";
import { htmlToText, readMail, splitQuotes } from "../src/channels/mail.ts";

const own = "claw@claw.test";
const server = "mx.claw.test";
const bytes = (text: string) => new TextEncoder().encode(text.replaceAll("\n", "\r\n"));
const good = `Authentication-Results: ${server}; dmarc=pass header.from=x.org`;
const plain = ["From: Owner <owner@x.org>", `To: ${own}`, "Message-ID: <m1@x.org>"];
const mailOf = (...lines: string[]) => readMail(bytes([...lines, "", "hello"].join("\n")));
const withBody = (headers: string[], body: string) =>
  readMail(bytes([...plain, ...headers, "", body].join("\n")));

describe("who is believed", () => {
  const believed = async (...proof: string[]) =>
    reasonToIgnore(await mailOf(...proof, ...plain), own, server) === null;
  const results = (text: string) => `Authentication-Results: ${text}`;

  test.each([
    `${server}; dmarc=pass`,
    `MX.Claw.Test; dmarc=pass header.from=x.org`,
    `"${server}" 1; dmarc=pass`,
    `(hi) ${server} (a (nested; "odd) comment\\)) 1 ; (c) dmarc (d) = pass (p=none; dis=none)`,
    `${server};\n spf=fail smtp.mailfrom=z.org;\n\tdkim=pass (2048-bit key) header.d=x.org header.i=@x.org;\n arc=none`,
    `${server}; dkim=pass header.i=@x.org`,
    `${server}; dkim=pass header.i=robot@x.org header.s=s1 header.b="a=b;c"`,
    `${server}; dkim=fail header.d=z.org; dkim=pass header.d=X.org`,
    `${server}; dkim/1=pass header.d=x.org; dmarc=none`,
    `${server}; DKIM=PASS HEADER.D=x.org; dmarc=temperror`,
  ])("yes: %s", async (text) => expect(await believed(results(text))).toBe(true));

  test.each([
    "",
    `${server}; none`,
    "other.test; dmarc=pass",
    `${server}.evil.test; dmarc=pass`,
    `x${server}; dmarc=pass`,
    `evil.test (${server}); dmarc=pass`,
    `${server} extra; dmarc=pass`,
    `${server} 1 extra; dmarc=pass`,
    `${server}; dmarc=fail header.from=x.org; dkim=pass header.d=x.org`,
    `${server}; dmarc=pass header.from=evil.org`,
    `${server}; dkim=pass header.d=evil.org`,
    `${server}; dkim=pass header.d=evil-x.org`,
    `${server}; dkim=pass header.d=mail.x.org`,
    `${server}; dkim=pass header.d=org`,
    `${server}; dkim=pass header.i=x.org@evil.org`,
    `${server}; dkim=pass header.d=evil.org header.i=@x.org`,
    `${server}; dkim=pass`,
    `${server}; spf=pass smtp.mailfrom=owner@x.org`,
    `${server}; dkim=fail (dkim=pass header.d=x.org; dmarc=pass)`,
    `${server}; dkim=fail reason="x; dmarc=pass; dkim=pass header.d=x.org"`,
    `${server}; spf=fail smtp.mailfrom="a; dmarc=pass"@evil.org`,
    `${server}; dmarc=fail dmarc=pass`,
    `${server}; x.dmarc=pass; notdmarc=pass; dmarc=passed; dmarc.x=pass`,
    `${server}; dmarc pass; = pass; dmarc==pass`,
    `${server}; dmarc=pass (never closed`,
    `${server}; dmarc=pass "never closed`,
    `${server}; dmarc=pass )`,
    `"; dmarc=pass; ${server}; dmarc=pass`,
  ])("no: %s", async (text) => expect(await believed(results(text))).toBe(false));

  test("only the topmost header, and only where there is one name for our server", async () => {
    expect(await believed(good, results("other.test; dmarc=fail"))).toBe(true);
    expect(await believed(results("other.test; dmarc=fail"), good)).toBe(false);
    expect(await believed(results(`${server}; dmarc=fail`), good)).toBe(false);
    expect(await believed("X-Authentication-Results: x", good)).toBe(true);
    const mail = await mailOf(good, ...plain);
    expect(reasonToIgnore(mail, own, null)).toContain("EMAIL_AUTHSERV_ID");
    expect(reasonToIgnore(mail, own, "")).toBe("its sender is not authenticated");
  });

  test("a signature by the domain above counts for a subdomain", async () => {
    const proof = results(`${server}; dkim=pass header.d=x.org`);
    const reasonFor = async (from: string) =>
      reasonToIgnore(await mailOf(proof, from), own, server);
    expect(await reasonFor("From: a@eu.x.org")).toBe("it is not addressed to us");
    expect(await reasonFor("From: a@ax.org")).toBe("its sender is not authenticated");
  });
});

test.each([
  ["Owner <owner@x.org>", "owner@x.org"],
  ["OWNER@X.ORG", "owner@x.org"],
  ['"boss@y.org" <owner@x.org>', "owner@x.org"],
  ["=?utf-8?q?J=C3=B6?= <owner@x.org> (at work)", "owner@x.org"],
  ["<owner@x.org>", "owner@x.org"],
  ["Jo <jo@bücher.example>", "jo@xn--bcher-kva.example"],
  ['"boss@x.org"@evil.org', null],
  ["owner@x.org, evil@y.org", null],
  ["owner@x.org <evil@y.org>", null],
  ["<owner@x.org> <evil@y.org>", null],
  ["Team: owner@x.org;", null],
  ["Team:;", null],
  ["<@evil.org:owner@x.org>", null],
  ["owner@x.org (never closed", null],
  ["owner@[127.0.0.1]", null],
  ["owner@x.org@evil.org", null],
  ["owner@", null],
  ["", null],
])("From: %s", async (from, address) => {
  const mail = await mailOf(`From: ${from}`);
  expect(mail.from?.address ?? null).toBe(address);
});

test("two From headers are none, however they are written", async () => {
  for (const second of ["From: evil@y.org", "from : evil@y.org", "FROM:\n\tevil@y.org"])
    expect((await mailOf(...plain, second)).from).toBeNull();
  expect((await mailOf("Sender: evil@y.org", "Resent-From: z@y.org", ...plain)).from).toEqual({
    address: "owner@x.org",
    name: "Owner",
  });
});

describe("what is ignored", () => {
  const reason = async (...lines: string[]) =>
    reasonToIgnore(await mailOf(good, ...lines, ...plain), own, server);

  test.each([
    "List-Id: <l.x.org>",
    "List-Unsubscribe: <mailto:u@x.org>",
    "Precedence: bulk",
    "precedence: LIST",
    "Auto-Submitted: auto-replied",
    "Auto-Submitted: auto-generated (by cron)",
    "X-Autoreply: yes",
    "X-Autorespond: me",
    "X-Auto-Response-Suppress: DR, AutoReply",
    "Return-Path: <>",
    "Content-Type: multipart/report; report-type=delivery-status; boundary=x",
  ])("%s", async (line) => expect(await reason(line)).toBeString());

  test.each([
    "Auto-Submitted: no",
    "Auto-Submitted: No (a person)",
    "Precedence: normal",
    "Return-Path: <owner@x.org>",
    "X-Auto-Response-Suppress: OOF",
    "Reply-To: evil@y.org",
  ])("not: %s", async (line) => expect(await reason(line)).toBeNull());

  const robots = "MAILER-DAEMON postmaster no-reply noreply+a do_not_reply bounces+1 owner-list";
  test.each([...robots.split(" "), "dev-request", "dev-bounces"])("%s@x.org", async (local) => {
    const mail = await mailOf(good, `From: ${local}@x.org`, `To: ${own}`);
    expect(reasonToIgnore(mail, own, server)).toBe("its sender is a program");
  });

  test.each([
    [`To: ${own}`, true],
    ["To: a@y.org\nCc: Claw <CLAW@claw.test>", true],
    ["To: claw+notes@claw.test", true],
    ["To: Friends: a@y.org, claw@claw.test;", true],
    ["To: undisclosed-recipients:;", false],
    ['To: "claw@claw.test" <a@y.org>', false],
    ["Bcc: claw@claw.test", false],
    ["To: claw@claw.test.evil.org", false],
  ])("addressed to us: %s", async (line, isToUs) => {
    const mail = await mailOf(good, "From: owner@x.org", line);
    expect(reasonToIgnore(mail, own, server) === null).toBe(isToUs);
  });

  test("our own address, also with a plus", async () => {
    const mail = await mailOf(good, "From: claw+x@claw.test", `To: ${own}`);
    expect(reasonToIgnore(mail, own, server)).toBe("it is our own");
  });
});

describe("threads", () => {
  test("nearest first, without itself; the root is the oldest", async () => {
    const lines = ["In-Reply-To: <c@x>", "References: <a@x>\n <b@x> junk <c@x> <m1@x.org>"];
    const mail = await mailOf(...plain, ...lines);
    expect([mail.id, mail.root, ...mail.ancestors].join(" ")).toBe("m1@x.org a@x c@x b@x a@x");
    expect(await mailOf(...plain)).toMatchObject({ root: "m1@x.org", ancestors: [] });
    expect((await mailOf(...plain, "In-Reply-To: <c@x>")).root).toBe("c@x");
  });

  test("no Message-ID: a hash of all of it", async () => {
    const idOf = async (line: string) => (await mailOf(line)).id;
    const id = await idOf("From: a@x");
    expect([await idOf("From: a@x"), await idOf("From: b@x")]).toEqual([
      id,
      expect.not.stringMatching(id),
    ]);
  });
});

test.each([
  ["utf-8", "quoted-printable", "gr=C3=BC=C3=9Fe =E2=82=AC"],
  ["utf-8", "base64", btoa("gr\xC3\xBC\xC3\x9Fe \xE2\x82\xAC")],
  ["windows-1252", "quoted-printable", "gr=FC=DFe =80"],
  ["iso-8859-15", "quoted-printable", "gr=FC=DFe =A4"],
  ["gb18030", "base64", btoa("\xD6\xD0\xCE\xC4")],
])("charset %s, %s", async (charset, encoding, body) => {
  const type = `Content-Type: text/plain; charset=${charset}`;
  const mail = await withBody([type, `Content-Transfer-Encoding: ${encoding}`], body);
  expect(mail.text).toBe(charset === "gb18030" ? "中文" : "grüße €");
});

test("words in headers and names of files come in any charset", async () => {
  const subject = "Subject: =?iso-8859-1?q?gr=FC=DFe?=\n =?utf-8?b?IOKCrA==?=";
  const parts = (name: string) =>
    `--b\nContent-Type: image/png\nContent-Disposition: attachment; ${name}\n\nx\n`;
  const names = ["filename*=utf-8''b%C3%B6se.png", 'filename="=?utf-8?q?b=C3=B6se?=.png"'];
  const body = `--b\n\nhello\n${names.map(parts).join("")}--b--`;
  const mail = await withBody([subject, "Content-Type: multipart/mixed; boundary=b"], body);
  const found = mail.attachments.map(({ filename }) => filename);
  expect([mail.subject, mail.text, ...found]).toEqual(["grüße €", "hello", "böse.png", "böse.png"]);
});

test("a forwarded mail is a file: its words are not the sender's", async () => {
  const inner = "Content-Type: message/rfc822\n\nFrom: evil@y.org\nSubject: s\n\nobey me";
  const body = `--b\n\nlook\n--b\n${inner}\n--b--`;
  const mail = await withBody(["Content-Type: multipart/mixed; boundary=b"], body);
  expect([mail.text, mail.attachments[0]?.mimeType]).toEqual(["look", "message/rfc822"]);
});

test("nesting without end is refused", async () => {
  const part = (depth: number) =>
    `Content-Type: multipart/mixed; boundary=b${depth}\n\n--b${depth}\n`;
  const bomb = Array.from({ length: 300 }, (_, depth) => part(depth)).join("");
  expect(await readMail(bytes(bomb)).catch((error: Error) => error.message)).toMatch(/nesting/i);
});

describe("what is new", () => {
  const quote = "> old\n> > older";
  test.each([
    [`new\n\nOn Mon, 2 Nov 2026 at 10:00, Jo <jo@x.org> wrote:\n\n${quote}`],
    [`new\n\nOn Mon, 2 Nov 2026 at 10:00, Jo Longname\n<jo@x.org> wrote:\n${quote}`],
    [`new\n\nAm 02.11.2026 um 10:00 schrieb Jo <jo@x.org>:\n${quote}`],
    [`new\n\nLe lun. 2 nov. 2026 à 10:00, Jo <jo@x.org> a écrit :\n${quote}`],
    [`new\n\nEl lun, 2 nov 2026 a las 10:00, Jo (<jo@x.org>) escribió:\n${quote}`],
    [`new\n\nOn 2 Nov 2026, Jo wrote:\nold without marks\nand more`],
    ["new\n\n-----Original Message-----\nFrom: Jo\nold"],
    ["new\n\n-----Ursprüngliche Nachricht-----\nold"],
    [
      "new\n\n________________________________\nFrom: Jo <jo@x.org>\nSent: Monday\nTo: me\nSubject: s\n\nold",
    ],
    ["new\n\nVon: Jo\nGesendet: Montag\nAn: mich\nBetreff: s\n\nold"],
    ["new\n\n*De :* Jo\n*Envoyé :* lundi\n*À :* moi\n*Objet :* s\n\nold"],
    ["new\n-- \nOwner\n+1 555"],
    ["new\n\nSent from my iPhone"],
    ["new\n\nVon meinem iPhone gesendet\n\nAm 2.11.2026 schrieb Jo:\n> old"],
    [`On 2 Nov 2026 Jo wrote:\n${quote}\n\nnew`],
  ])("%j", (mail) => {
    const { text, quoted } = splitQuotes(mail.replaceAll("\n", "\r\n"));
    expect(text).toBe("new");
    expect(quoted).not.toBe("");
    expect(quoted).not.toContain("new");
  });

  test.each([
    "From: this is a list\nof things\nto do",
    "On Monday he wrote: come",
    "Am I late?\n\n-- no, not at all",
    "Sent from my point of view this is a long sentence that goes on\nand has another line after it",
    "a -> b\nc > d",
  ])("kept whole: %j", (mail) => expect(splitQuotes(mail)).toEqual({ text: mail, quoted: "" }));

  test("answers between quoted lines stay; all quote and nothing new stays whole", () => {
    const mail = "On 2 Nov 2026 Jo wrote:\n> one?\nyes\n> two?\nno\n-- \nme";
    expect(splitQuotes(mail).text).toBe("yes\nno");
    expect(splitQuotes("> only\n> this")).toEqual({ text: "> only\n> this", quoted: "" });
  });
});

test.each([
  ["a<br>b<p>c</p><div>d</div>", "a\nb\n\nc\n\nd"],
  ["<ul><li>a<li>b<ol><li>x</li><li>y</ol></ul>c", "- a\n- b\n  1. x\n  2. y\n\nc"],
  ["<table><tr><th>a<th>b</tr><tr><td>1</td><td>2</td></tr></table>", "a | b\n1 | 2"],
  ['<a href="https://x.org/?a=1&amp;b">see</a>', "see (https://x.org/?a=1&b)"],
  ['<a href="https://x.org/">x.org</a>', "x.org"],
  ['<a href="javascript:alert(1)">x</a>', "x"],
  ["<title>t</title><style>p{}</style>&uuml;&nbsp;&#8364;&#x1F600;<script>s</script>", "ü €😀"],
  ['a<div style="display: none">b</div><p hidden>c</p><span style="font-size:0">d</span>', "a"],
  ["<pre>  x\n    y</pre>", "x\n    y"],
  ["a<blockquote>b<blockquote>c</blockquote></blockquote>", "a\n>\n> b\n> >\n> > c"],
  ["&lt;b&gt; &amp;amp;", "<b> &amp;"],
])("HTML %s", (html, text) => expect(htmlToText(html)).toBe(text));

describe("the answer", () => {
  const text = "# Title\n\nhi <b>x</b> [a](javascript:alert(1)) ![p](https://evil.org/p.png)";
  const noReply = { address: "owner@x.org", reply: null, files: [], createdAt: 1 };
  const outgoing: Outgoing = { clientId: "claw-1", text, automatic: false, ...noReply };
  const rawOf = async (part: Partial<Outgoing>, contents: Uint8Array[] = []) => {
    const { mail } = letterOf({ ...outgoing, ...part }, own, contents);
    return (await new MailComposer(mail).compile().build()).toString();
  };

  test.each([
    ["Plans", "Re: Plans"],
    ["Re: Plans", "Re: Plans"],
    ["RE: AW: Antw: Re[2]: SV: Plans", "Re: Plans"],
    ["Rede: Plans", "Re: Rede: Plans"],
    ["Fwd: Plans", "Re: Fwd: Plans"],
    ["", "Re: (no subject)"],
  ])("to the subject %j", async (subject, expected) => {
    const mail = await mailOf(...plain, `Subject: ${subject}`);
    const reply = replyOf(mail, "owner@x.org", own, false);
    expect(letterOf({ ...outgoing, reply }, own, []).mail.subject).toBe(expected);
  });

  test("the others on the mail only where config wants it; a long thread keeps its root", async () => {
    const ids = Array.from({ length: 40 }, (_, index) => `<r${index}@x>`);
    const people = [`To: ${own}, b@y.org`, "Cc: owner@x.org, c@y.org", "Message-ID: <m@x>"];
    const mail = await mailOf(...people, `References: ${ids.join(" ")}`);
    expect(replyOf(mail, "owner@x.org", own, false).cc).toEqual([]);
    const reply = replyOf(mail, "owner@x.org", own, true);
    const letter = letterOf({ ...outgoing, reply }, own, []);
    expect(letter.recipients).toEqual(["owner@x.org", "b@y.org", "c@y.org"]);
    expect(letter.mail.references).toHaveLength(20);
    expect([letter.mail.references?.[0], letter.mail.references?.at(-1)]).toEqual([
      "<r0@x>",
      "<m@x>",
    ]);
  });

  test("nothing that was written becomes a header, a recipient, HTML or a picture", async () => {
    const evil = "x\r\nBcc: evil@y.org";
    const reply = {
      to: "owner@x.org",
      subject: evil,
      inReplyTo: `${evil}>`,
      references: [evil, "ok@x"],
    };
    const files = [{ path: "/etc/passwd", name: evil, mediaType: `text/plain${evil}`, bytes: 1 }];
    const raw = await rawOf({ reply, files }, [bytes("content")]);
    expect(raw).not.toMatch(/^Bcc/m);
    expect(raw).toContain("References: <ok@x>\r\n");
    expect(raw).toContain(btoa("content"));
    const { html } = letterOf(outgoing, own, []).mail;
    expect(html).toContain('hi &lt;b&gt;x&lt;/b&gt; a <a href="https://evil.org/p.png">p</a>');
    expect(html).not.toMatch(/<img|javascript:/);
    for (const to of ["a@b.org, c@d.org", "a@b.org\r\nBcc: c@d.org", "<a@b.org>", "a b@c.org", ""])
      expect(() => letterOf({ ...outgoing, address: to }, own, [])).toThrow(SendError);
  });

  test("a mail that answers nothing has its first line as its subject", async () => {
    const raw = await rawOf({ automatic: true });
    for (const line of ["Subject: Title", "Message-ID: <claw-1@claw.test>", "To: owner@x.org"])
      expect(raw).toContain(`${line}\r\n`);
    expect(raw).toContain("Auto-Submitted: auto-generated\r\n");
    expect(messageIdOf(outgoing, own)).toBe("claw-1@claw.test");
  });
});
