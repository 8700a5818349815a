/** The image that containers start from: found, pulled, built once, or why not. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { messageOf, UsageError } from "../src/errors.ts";
import { defaultImage, ensureImage } from "../src/hands/image.ts";
import { type Runtime, runtimes, tell } from "../src/hands/runtime.ts";
import { newPlace } from "./claw.ts";
import { type Docker, dockerMissing, startDocker } from "./docker.ts";

setDefaultTimeout(180_000); // the first run of all makes the image

const container = join(import.meta.dir, "../container");
const containerfile = readFileSync(join(container, "Containerfile"), "utf8");

test("claw's own image is named by its Containerfile, which is pinned and brings nothing of claw", () => {
  const digest = new Bun.CryptoHasher("sha256").update(containerfile).digest("hex");
  expect(defaultImage).toBe(`claw-hands:${digest.slice(0, 12)}`);
  expect(containerfile.match(/^FROM .*/gm)).toEqual([
    expect.stringMatching(/^FROM debian:trixie-\d{8}-slim@sha256:[0-9a-f]{64}$/),
  ]);
  expect(containerfile).toMatch(/^USER 65532:65532$/m);
  expect(containerfile).not.toMatch(/^(COPY|ADD|ENTRYPOINT|VOLUME|ARG|ENV)/m);
  for (const name of ["git", "python3", "ripgrep", "curl", "gcc", "make", "ca-certificates"])
    expect(containerfile).toContain(` ${name} `);
});

test("make-image says what it needs, and takes no odd words", async () => {
  const make = async (...argv: string[]) => {
    const child = Bun.spawn([join(container, "make-image"), ...argv], { stderr: "pipe" });
    return [await child.exited, await child.stderr.text()];
  };
  for (const argv of [[], ["a", "b"], ["--help"], ["--podman"]])
    expect(await make(...argv)).toEqual([2, "usage: container/make-image [--podman] NAME\n"]);
});

if (dockerMissing) console.error(`Tests of images are skipped: ${dockerMissing}.`);

describe.skipIf(dockerMissing !== null)("an image", () => {
  const place = newPlace();
  const { DOCKER_HOST } = process.env;
  let docker: Docker;
  let lines: string[] = [];
  let log: string[] = [];
  const ensure = (runtime: Runtime, image: string, signal?: AbortSignal) =>
    ensureImage(runtime, image, {
      log: (event) => log.push(event),
      onProgress: (line) => lines.push(line),
      signal,
    });
  /** docker itself, building another Containerfile: what is pinned here cannot be fetched in tests. */
  const building = (text: string): { runtime: Runtime; builds: () => number } => {
    let builds = 0;
    const build = (image: string, folder: string): string[] => {
      builds++;
      expect(readFileSync(join(folder, "Containerfile"), "utf8")).toBe(containerfile);
      return ["sh", "-c", 'printf "$1" | docker build --tag "$2" -', "sh", text, image];
    };
    return { runtime: { ...runtimes.docker, build }, builds: () => builds };
  };
  const remove = () => tell(["docker", "image", "rm", "--force", defaultImage]);
  const leftovers = () => readdirSync(tmpdir()).filter((name) => name.startsWith("claw-image-"));

  beforeAll(async () => {
    docker = await startDocker();
    process.env["DOCKER_HOST"] = docker.host;
    await remove();
  });
  afterAll(async () => {
    await remove();
    await docker.stop();
    delete process.env["DOCKER_HOST"];
    if (DOCKER_HOST) process.env["DOCKER_HOST"] = DOCKER_HOST;
    place[Symbol.dispose]();
  });

  const failureOf = async (work: Promise<void>): Promise<string> => {
    [lines, log] = [[], []];
    try {
      await work;
    } catch (error) {
      return error instanceof UsageError ? error.message : `a bug: ${messageOf(error)}`;
    }
    return "it is there";
  };

  test("that is there is asked for, and nothing else is done", async () => {
    expect(await failureOf(ensure(runtimes.docker, docker.image))).toBe("it is there");
    expect([...lines, ...log]).toEqual([]);
  });

  test("without a registry in its name is not looked for in the world", async () => {
    for (const image of ["claw-none:1", "someone/claw-none"]) {
      const why = await failureOf(ensure(runtimes.docker, image));
      expect(why).toBe(
        `docker has no image "${image}", and the name says no registry to pull it from: make it ` +
          `with \`container/make-image ${image}\`, or set CLAW_IMAGE to another.`,
      );
      expect([...lines, ...log]).toEqual([]);
    }
    expect(await failureOf(ensure(runtimes.docker, "--all"))).toContain("cannot name");
  });

  test("with a registry in its name is pulled from there, and the cause of a failure is told", async () => {
    const work = ensure(runtimes.docker, "127.0.0.1:1/claw:1");
    expect(await failureOf(work)).toMatch(
      /^docker could not pull the image "127\.0\.0\.1:1\/claw:1" \(.*connection refused\): correct CLAW_IMAGE/,
    );
    expect(log).toEqual(["image pull started"]);
    expect(lines[0]).toBe("Pulling the image 127.0.0.1:1/claw:1, once.");
  });

  test("of claw's own that cannot be built says why, and two ways out", async () => {
    const { runtime } = building(`FROM ${docker.image}\\nUSER 0\\nRUN echo broken; false\\n`);
    const why = await failureOf(ensure(runtime, defaultImage));
    expect(why).toContain("docker could not build claw's image (");
    expect(why).toMatch(/returned a non-zero code: 1|exit code: 1/);
    expect(why).toContain(`container/make-image ${defaultImage}`);
    expect(why).toContain("CLAW_IMAGE");
    expect(lines.join("\n")).toContain("broken");
    expect(leftovers()).toEqual([]);
  });

  test("of claw's own is built once, whoever waits for it, and again when it is gone", async () => {
    const { runtime, builds } = building(`FROM ${docker.image}\\nRUN echo made\\n`);
    const gone = new AbortController();
    const work = Promise.all([ensure(runtime, defaultImage), ensure(runtime, defaultImage)]);
    const left = ensure(runtime, defaultImage, gone.signal).then(() => "", messageOf);
    gone.abort(new Error("no longer wanted"));
    expect(await left).toBe("no longer wanted");
    expect(await failureOf(work.then(() => undefined))).toBe("it is there");
    expect([builds(), log]).toEqual([1, ["image build started", "image ready"]]);
    expect(lines.filter((line) => /\bmade\b/.test(line)).length).toBeGreaterThanOrEqual(2);
    await ensure(runtime, defaultImage);
    expect(builds()).toBe(1);
    await remove();
    await ensure(runtime, defaultImage);
    expect(builds()).toBe(2);
    expect(leftovers()).toEqual([]);
  });

  test("made by make-image has what an agent works with, and no root's programs", async () => {
    const script =
      "git --version && python3 -m venv --help >/dev/null && rg --version && curl --version && " +
      "printf 'int main(){return 0;}' | gcc -x c -o /tmp/a - && /tmp/a && pip3 --version && " +
      "id -u && ls /etc/ssl/certs/ca-certificates.crt";
    const argv = ["docker", "run", "--rm", "--network", "none", docker.image, "sh", "-c", script];
    const { code, stdout } = await tell(argv);
    expect(stdout).toContain("\n65532\n");
    expect(code).toBe(0);
  });
});
