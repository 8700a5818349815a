/**
 * From the bytes of a terminal to key events: UTF-8 and escape sequences split over chunks,
 * bracketed paste, CSI/SS3 keys with modifiers, kitty's `CSI code;modifiers u` and xterm's
 * `CSI 27;modifiers;code ~`. A sequence that is not understood is dropped whole and never typed.
 */
// oxlint-disable no-control-regex -- keys are control sequences

export type Key =
  | { type: "text"; text: string }
  | { type: "paste"; text: string }
  /** A letter or a name, after its modifiers: "C-a", "A-left", "S-tab", "enter". */
  | { type: "key"; name: string }
  /** The terminal is gone. */
  | { type: "end" };

const PASTE_END = "\x1b[201~";

/** A whole CSI or SS3 sequence at the start; or, from ESC [ on, one that is not whole yet. */
const sequence = /^\x1b(?:\[([<-?]?)([0-9;:]*)[ -/]*([@-~])|O([ -~]))/;
const unfinished = /^\x1b(?:\[[<-?]?[0-9;:]*[ -/]*|O)?$/;
/** OSC, DCS, APC, PM: what a terminal answers to a query nobody here makes. */
const string = /^\x1b[\]P_^][^\x07\x1b]*(?:\x07|\x1b\\)/;

const finals: Record<string, string> = {
  A: "up",
  B: "down",
  C: "right",
  D: "left",
  F: "end",
  H: "home",
  M: "enter",
  Z: "tab",
};
const tildes: Record<number, string> = { 1: "home", 3: "delete", 4: "end", 7: "home", 8: "end" };
const codes: Record<number, string> = {
  8: "backspace",
  9: "tab",
  13: "enter",
  27: "escape",
  32: "space",
  127: "backspace",
  57414: "enter",
};

const key = (name: string, modifiers = 0): Key => ({
  type: "key",
  name: `${modifiers & 4 ? "C-" : ""}${modifiers & 2 ? "A-" : ""}${modifiers & 1 ? "S-" : ""}${name}`,
});

export class KeyReader {
  #decoder = new TextDecoder();
  #rest = "";
  /** The pieces of a paste that has not ended; null outside of one. */
  #paste: string[] | null = null;

  /** True while an ESC waits for what follows; `flush` takes it as the Esc key. */
  get pending(): boolean {
    return this.#rest !== "" && this.#paste === null;
  }

  feed(bytes: Uint8Array): Key[] {
    this.#rest += this.#decoder.decode(bytes, { stream: true });
    const keys: Key[] = [];
    while (this.#rest !== "") {
      const found = this.#paste ? this.#readPaste(this.#paste) : this.#readKey();
      if (found === null) break;
      if (found !== undefined) keys.push(found);
    }
    return keys;
  }

  flush(): Key[] {
    const isWaiting = this.#rest !== "";
    this.#rest = "";
    return isWaiting ? [key("escape")] : [];
  }

  /** Takes the next key off the rest: undefined where it means nothing, null where more is needed. */
  #readKey(): Key | null | undefined {
    const rest = this.#rest;
    if (rest[0] !== "\x1b")
      return this.#take(/^[^\p{Cc}]+/u.exec(rest)?.[0] ?? rest[0] ?? "", typed);
    const match = sequence.exec(rest);
    if (match) return this.#take(match[0], () => this.#toKey(match));
    const answer = string.exec(rest);
    if (answer) return this.#take(answer[0], () => undefined);
    if (unfinished.test(rest)) return null;
    const second = rest.slice(1, 2);
    if (second === "\x1b") return this.#take("\x1b", () => key("escape"));
    return this.#take(rest.slice(0, 1 + second.length), () => withAlt(typed(second)));
  }

  #take(text: string, toKey: (text: string) => Key | undefined): Key | undefined {
    this.#rest = this.#rest.slice(text.length);
    return toKey(text);
  }

  #toKey([, prefix, numbers = "", final = "", ss3]: string[]): Key | undefined {
    if (ss3 !== undefined) return finals[ss3] ? key(finals[ss3]) : undefined;
    if (prefix) return undefined;
    const [first = 1, second = 1, third = 0] = numbers
      .split(";")
      .map((part) => parseInt(part) || 1);
    const modifiers = second - 1;
    if (final === "~" && first === 200) this.#paste = [];
    else if (final === "~" && first === 27) return keyOfCode(third, modifiers);
    else if (final === "~" && tildes[first]) return key(tildes[first], modifiers);
    else if (final === "u") return keyOfCode(first, modifiers);
    else if (final === "Z") return key("tab", 1);
    else if (finals[final]) return key(finals[final], modifiers);
    return undefined;
  }

  /** Keeps the pieces apart until the end mark comes, so that a long paste is joined only once. */
  #readPaste(pieces: string[]): Key | null {
    const end = this.#rest.indexOf(PASTE_END);
    const kept = end >= 0 ? end : this.#rest.length - (PASTE_END.length - 1);
    if (kept > 0) pieces.push(this.#rest.slice(0, kept));
    this.#rest = this.#rest.slice(Math.max(0, end >= 0 ? end + PASTE_END.length : kept));
    if (end < 0) return null;
    this.#paste = null;
    return { type: "paste", text: pieces.join("").replaceAll(/\r\n?/g, "\n") };
  }
}

function keyOfCode(code: number, modifiers: number): Key | undefined {
  const name = codes[code];
  if (name === "space" && modifiers === 0) return { type: "text", text: " " };
  if (name) return key(name, modifiers);
  if (code < 32 || code > 0x10ffff || (code >= 57344 && code <= 63743)) return undefined;
  const text = String.fromCodePoint(code);
  return modifiers & 6 ? key(text.toLowerCase(), modifiers) : { type: "text", text };
}

/** What a run of printable characters, or one control character, was typed with. */
function typed(text: string): Key | undefined {
  const code = text.charCodeAt(0);
  const name = codes[code];
  if (name && name !== "space") return key(name);
  if (code >= 1 && code < 32) return key(String.fromCharCode(code + (code < 27 ? 96 : 64)), 4);
  const isControl = code === 0 || (code > 127 && code < 160);
  return isControl || text === "" ? undefined : { type: "text", text };
}

function withAlt(found: Key | undefined): Key | undefined {
  if (found?.type === "text") return key(found.text, 2);
  return found?.type === "key" ? key(found.name, 2) : found;
}
