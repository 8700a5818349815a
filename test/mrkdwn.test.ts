/** Markdown comes out as Slack shows it, and cannot become anything else. */
import { expect, test } from "bun:test";
import { splitMrkdwn, toMrkdwn } from "../src/channels/mrkdwn.ts";

/** `·` stands for a zero-width space. */
const convert = (markdown: string) => toMrkdwn(markdown).replaceAll("\u200B", "·");

const table: [name: string, markdown: string, mrkdwn: string][] = [
  ["nothing", " \n", ""],
  ["paragraphs and soft breaks", "a\nb\n\nc", "a\nb\n\nc"],
  ["emphasis", "**b** *i* ~~s~~ `c`", "*b* _i_ ~s~ `c`"],
  ["both at once", "***x***", "_*x*_"],
  ["one within the other", "**a *b* c**", "*a _b_ c*"],
  ["one within its own kind", "# a **b** c", "*a b c*"],
  ["over two lines", "**a\nb** c", "*a*\n*b* c"],
  ["beside letters", "**bold**text te**bo**xt", "*bold*·text te·*bo*·xt"],
  ["beside letters of any script", "**你好**，世界`x`吗", "*你好*·，世界·`x`·吗"],
  ["beside punctuation", "(**a**), **b**.", "(*a*), *b*."],
  ["beside each other", "*a***b**`c`", "_a_·*b*·`c`"],
  ["headings", "# One\n\ntext\n\nTwo\n---", "*One*\n\ntext\n\n*Two*"],
  ["code span with a backtick", "`` a`b `` x", "`aˋb` x"],
  ["code span over two lines", "`a\nb`", "`a b`"],
  ["a rule", "a\n\n---\n\nb", `a\n\n${"─".repeat(20)}\n\nb`],
  [
    "html",
    "<b>x</b>\n\n<div>\n*y*\n</div>",
    "&lt;b&gt;x&lt;/b&gt;\n\n&lt;div&gt;\n*·y·*\n&lt;/div&gt;",
  ],

  [
    "escapes once",
    "a & b &amp; c &lt; < > `&amp; <`",
    "a &amp; b &amp; c &lt; &lt; &gt; `&amp;amp; &lt;`",
  ],
  [
    "a fence as it is",
    "```js\nif (a < b && c) **x**\n\n  _y_ [z](w)\n```",
    "```\nif (a &lt; b &amp;&amp; c) **x**\n\n  _y_ [z](w)\n```",
  ],
  ["an indented block", "    a\n      b", "```\na\n  b\n```"],
  ["an open fence", "```\na", "```\na\n```"],
  ["a fence in a fence", "````\n```\nx\n```\n````", "```\n`·``\nx\n`·``\n```"],

  ["links", "[a *b*](http://x.org/?a=1&b=2)", "<http://x.org/?a=1&amp;b=2|a b>"],
  ["a link with an entity", "[a](http://x/?a&amp;b)", "<http://x/?a&amp;b|a>"],
  ["what ends a link", "[a|b>c](http://x/|>`y)", "<http://x/%7C%3E%60y|a¦b&gt;c>"],
  [
    "bare addresses",
    "http://x.org/a_b_c, www.y.org",
    "<http://x.org/a_b_c>, <http://www.y.org|www.y.org>",
  ],
  ["a mail address", "<me@x.org> [m](mailto:a@b.c)", "<mailto:me@x.org|me@x.org> <mailto:a@b.c|m>"],
  ["other schemes", "[x](javascript:alert(1)) [f](./a.md)", "x (javascript:alert(1)) f (./a.md)"],
  ["images", "![alt](http://i/x.png) ![](http://i)", "<http://i/x.png|alt> <http://i|image>"],
  ["an image in a link", "[![alt](http://i)](http://l)", "<http://l|alt>"],
  ["a reference", "[a]\n\n[a]: http://x.org", "<http://x.org|a>"],
  ["emphasis around links", "**[a](http://x)**", "*<http://x|a>*"],

  [
    "nested lists",
    "- a\n- b\n  - c\n    more\n    - d\n- e",
    "• a\n• b\n    ◦ c\n        more\n        ◦ d\n• e",
  ],
  ["numbers", "3. a\n4. b\n   1. c\n\n   para", "3. a\n4. b\n    1. c\n    para"],
  ["tasks", "- [x] a\n- [ ] b", "☑ a\n☐ b"],
  ["code in a list", "- a\n\n  ```\n  x\n    y\n  ```\n- b", "• a\n```\nx\n  y\n```\n• b"],
  ["quotes", "> a\n> b\n>\n> - c\n>\n> > d", "> a\n> b\n> \n> • c\n> \n> d"],
  ["a quote in a list", "- > a\n- b", "• \n> a\n• b"],
  [
    "tables",
    "| a | bb |\n|:-:|--:|\n| **x** `y` | 1 |\n| 日本 & | 22 |",
    "```\n  a    | bb\n-------|---\n x y   |  1\n日本 &amp; | 22\n```",
  ],
  ["a link in a table", "| a |\n|-|\n| [x](http://y) |", "```\na\n------------\nx (http://y)\n```"],

  [
    "mentions",
    "<!channel> <@U1> <#C1|x> <!date^1^x|y>",
    "&lt;!channel&gt; &lt;@U1&gt; &lt;#C1|x&gt; &lt;!date^1^x|y&gt;",
  ],
  [
    "mentions in entities",
    "&lt;!here&gt; &#60;!here&#x3e; &amp;lt;!here>",
    "&lt;!here&gt; &lt;!here&gt; &amp;lt;!here&gt;",
  ],
  [
    "mentions in links",
    "[<@U1>](http://x) [b](!here) [c](http://x/<!here>)",
    "<http://x|&lt;@U1&gt;> b (!here) <http://x/%3C!here%3E|c>",
  ],
  [
    "mentions by name",
    "@channel @here @Everyone a@b.org",
    "@·channel @·here @·Everyone <mailto:a@b.org|a@b.org>",
  ],
  ["our own marks", "\uFDD7http://x\uFDD8y\uFDD9 &#xFDDB;z `\uFDD9`", "�http://x�y� �z `�`"],

  ["signs that are text", "\\*a\\* \\_b\\_ \\~c\\~ \\`d\\`", "*·a·* _·b·_ ~·c·~ `·d·`"],
  ["signs that do no harm", "2 * 3 * 4, a_b_c, ~/x ~/y, *", "2 * 3 * 4, a_b_c, ~/x ~/y, *"],
  ["a sign within emphasis", "**a \\*b**", "*a *·b*"],
  ["a fence that is text", "\\`\\`\\`x", "`·``x"],
  ["a quote that is text", "\\> a", "·&gt; a"],
];

test.each(table)("converts %s", (_, markdown, mrkdwn) => {
  expect(convert(markdown)).toBe(mrkdwn);
});

test("a table too wide for a line becomes lines", () => {
  const markdown = `| a | b |\n|-|-|\n| ${"x".repeat(99)} | **y** |\n| 1 | |`;
  expect(convert(markdown)).toBe(`*a*: ${"x".repeat(99)}\n*b*: *y*\n\n*a*: 1`);
});

test("a link too long for a message is text", () => {
  const address = `http://x.org/${"a".repeat(3000)}`;
  expect(convert(`[x](${address})`)).toBe(`x (${address})`);
});

/** The same numbers at every run. */
function numbersFrom(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

const words =
  "word|a|👩‍👩‍👧‍👦|🇨🇭|é|日本語|\u0301|\uFDD7|&#xFDDB;|(|)|\t| |\n|\n\n|\n- |\n  1. |\n> |\n# ";
const code =
  "|\n```\n|```|~~~\n|`|**|*|_|~~|\\|---\n|[|](http://x.org/a_b)|![|http://y.org/?a=1&b=2 |<br>";
const traps =
  "|<|>|<!channel>|<@U1>|&|&amp;|&lt;|<!--|xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx|\n¦a¦b¦\n¦-¦-¦\n¦";
const bits = (words + code + traps).split("|").map((bit) => bit.replaceAll("¦", "|"));

function textFrom(seed: number, length: number): string {
  const next = numbersFrom(seed);
  return Array.from({ length }, () => bits[next(bits.length)]).join("");
}

test("whatever is written, only links and signs of ours are control", () => {
  for (let seed = 0; seed < 1500; seed += 1) {
    const mrkdwn = toMrkdwn(textFrom(seed, 40));
    const rest = mrkdwn.replaceAll(/<(https?:\/\/|mailto:)[^<>|\s]+(\|[^<>|\n]+)?>/g, "");
    expect([
      seed,
      rest.match(/[<\uFDD0-\uFDEF]|&(?!(amp|lt|gt);)|^.*[^>\n ].*(?<!^)>.*$/m),
    ]).toEqual([seed, null]);
    expect([seed, (mrkdwn.match(/```/g)?.length ?? 0) % 2]).toEqual([seed, 0]);
  }
});

const bare = (text: string) => text.replaceAll("```", "").replaceAll(/\s/g, "");
const graphemesOf = (text: string) =>
  Array.from(new Intl.Segmenter("en").segment(text), ({ segment }) => bare(segment)).filter(
    Boolean,
  );

test("parts hold all of the text, none too much, and no cut goes through a thing", () => {
  for (let seed = 0; seed < 250; seed += 1) {
    const text = toMrkdwn(textFrom(seed, 400));
    const maxChars = 800 + (seed % 200);
    const parts = splitMrkdwn(text, maxChars);
    expect([seed, parts.map(bare).join("")]).toEqual([seed, bare(text)]);
    const [wide, odd, torn] = [
      parts.filter((part) => part.length > maxChars),
      parts.filter((part) => (part.match(/```/g)?.length ?? 0) % 2 === 1),
      parts.filter((part) =>
        /<[^<>]*$|&[a-z]*$|^[a-z]*;|^[^<>]*(?<!^|\n)>/.test(part.replaceAll(/^> /gm, "")),
      ),
    ];
    expect([seed, wide, odd, torn]).toEqual([seed, [], [], []]);
    const [cut, uncut] = [parts.join("\n"), text].map((one) =>
      graphemesOf(one.replaceAll("```", "\n")),
    );
    expect([seed, cut]).toEqual([seed, uncut]);
  }
});

test("nothing is no part, and what fits is one", () => {
  expect([splitMrkdwn(""), splitMrkdwn(" \n ")]).toEqual([[], []]);
  expect(splitMrkdwn("a\n\nb")).toEqual(["a\n\nb"]);
  expect(splitMrkdwn("x".repeat(4000))).toHaveLength(1);
  expect(splitMrkdwn("x".repeat(4001)).map((part) => part.length)).toEqual([3996, 5]);
});

test("cuts between paragraphs, else lines, else words", () => {
  const wordsOf = (char: string) => Array.from({ length: 3 }, () => char.repeat(9)).join(" ");
  const [a, b, c] = [wordsOf("a"), wordsOf("b"), wordsOf("c")];
  expect(splitMrkdwn(`${a}\n${b}\n\n${c}`, 70)).toEqual([`${a}\n${b}`, c]);
  expect(splitMrkdwn(`${a}\n${b}\n${c}`, 70)).toEqual([`${a}\n${b}`, c]);
  expect(splitMrkdwn(`${a} ${b} ${c}`, 70)).toEqual([`${a} ${b}`, c]);
  expect(splitMrkdwn(`${"x".repeat(20)} *${b}* y`, 50)).toEqual(["x".repeat(20), `*${b}* y`]);
});

test("a fence that is cut is closed and opened again, and none is left empty", () => {
  const lines = Array.from({ length: 10 }, (_, at) => `  line ${at}`);
  const parts = splitMrkdwn(`text\n\`\`\`\n${lines.join("\n")}\n\`\`\`\nend`, 60);
  for (const part of parts.slice(1, -1)) expect(part).toMatch(/^```\n {2}line[^`]*\n```$/);
  expect(parts[0]).toStartWith("text\n```\n  line 0\n");
  expect(parts.at(-1)).toEndWith("\nend");
  expect(parts.join("\n").match(/line \d/g)).toHaveLength(10);
  const text = `${"a".repeat(30)}\n\`\`\`\n${"xxxxx\n".repeat(12)}\`\`\`\n${"b ".repeat(40)}`;
  for (let maxChars = 30; maxChars < 90; maxChars += 1)
    expect(splitMrkdwn(text, maxChars).join()).not.toMatch(/```\s*```/);
});

test("a fence that nobody closed is closed, within the limit", () => {
  for (let length = 90; length < 104; length += 1) {
    const parts = splitMrkdwn(`\`\`\`\n${"x".repeat(length - 4)}`, 100);
    expect(parts.map((part) => part.length <= 100 && part.endsWith("\n```"))).not.toContain(false);
  }
});

test("emphasis too long for a part is cut between words", () => {
  const parts = splitMrkdwn(`*${"aaaaaa ".repeat(30)}aaaaaa*`, 50);
  for (const part of parts) expect(part).toMatch(/^\*?(aaaaaa ?)+\*?$/);
});

test("text without a space is cut between characters, and between entities", () => {
  for (const part of splitMrkdwn("&amp;".repeat(50), 53)) expect(part).toMatch(/^(&amp;)+$/);
  for (const long of ["👩‍👩‍👧‍👦".repeat(50), `<http://x|${"👩‍👩‍👧‍👦".repeat(50)}>`]) {
    const parts = splitMrkdwn(long, 54);
    expect(parts.flatMap(graphemesOf)).toEqual(graphemesOf(long));
  }
});
