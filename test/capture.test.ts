import { describe, expect, it } from "bun:test";
import { config } from "../src/config.ts";
import { Capture } from "../src/tools/capture.ts";

describe("Capture", () => {
  const KEPT = 4 * config.limits.resultChars;

  it.each([0, 1, KEPT - 1, KEPT, KEPT + 1, 2 * KEPT - 1, 2 * KEPT, 2 * KEPT + 1, 5 * KEPT + 7])(
    "reads the same, however %i bytes are dealt out",
    (length) => {
      const bytes = Buffer.from("0123456789abcdef é\n".repeat(length / 18 + 1)).subarray(0, length);
      const texts = [1_000_003, 65_536, 4_097].map((step) => {
        const capture = new Capture();
        for (let at = 0; at < length; at += step) capture.write(bytes.subarray(at, at + step));
        expect(capture.bytes).toBe(length);
        return capture.close();
      });
      expect(new Set(texts).size).toBe(1);
      const end = bytes.subarray(-10_000).toString().trimEnd();
      expect(texts[0]?.slice(-5_000)).toBe(end.slice(-5_000));
    },
  );

  it("takes nothing more once it is closed", () => {
    const capture = new Capture();
    capture.write(Buffer.from("a"));
    expect(capture.close()).toBe("a");
    capture.write(Buffer.from("b"));
    expect(capture.take(true)).toBe("");
  });

  it("says what a progress bar overwrote, also where the middle is gone", () => {
    const capture = new Capture();
    for (let i = 0; i < 100_000; i++) capture.write(Buffer.from(`\r${i} of 100000`));
    const text = capture.close();
    expect(text).toContain("99999 of 100000\n[");
    expect(text).toMatch(/\[\d+ bytes are cut here.*\n.*\n\[\d+ characters that were overwritten/);
    expect(text.length).toBeLessThan(500);
  });
});
