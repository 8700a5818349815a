/**
 * Skills: folders `NAME/SKILL.md` in the Agent Skills format (agentskills.io). Only name and
 * description stand in the system prompt; the body comes when the model calls the Skill tool.
 *
 * Looked for in `$CLAW_HOME/skills`, the project's `.claw/skills` and `.claude/skills`, and the
 * binary; of two with one name the first counts. A skill is text for the model: nothing in it is
 * ever run by being there.
 */
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { messageOf } from "../errors.ts";
import type { ToolCall, ToolOutput, ToolSpec } from "../types.ts";

export type Skill = { name: string; description: string; folder: string };
export type SkillIndex = {
  list: readonly Skill[];
  /** One line for each folder that should hold a skill and does not, with the reason. */
  broken: readonly string[];
};

export const skillSpec: ToolSpec = {
  name: "Skill",
  description: "Loads a skill listed in the system prompt: instructions for a kind of task.",
  schema: { type: "object", properties: { skill: { type: "string" } }, required: ["skill"] },
};

const maxSkillChars = 100_000;

/** The format's rules for the front matter; other fields are allowed and left alone. */
const frontMatter = z.object({
  name: z
    .string()
    .regex(/^[a-z0-9]+(-[a-z0-9]+)*$/, "lower-case words joined by hyphens")
    .max(64),
  description: z.string().trim().min(1).max(1024),
});

/** The skills in the binary lie beside the code; run from source, two folders up. */
const bundled = () => join(import.meta.dir, Bun.isStandaloneExecutable ? "skills" : "../../skills");

/** `confined`: somebody else writes to `cwd`, so its skills are not looked at. */
export async function findSkills(
  cwd: string,
  clawHome: string,
  confined = false,
): Promise<SkillIndex> {
  const own = confined ? [] : [join(cwd, ".claw/skills"), join(cwd, ".claude/skills")];
  const folders = [join(clawHome, "skills"), ...own, bundled()];
  const found = (await Promise.all(folders.map(readSkills))).flat();
  const list = new Map<string, Skill>();
  for (const skill of found)
    if (typeof skill !== "string" && !list.has(skill.name)) list.set(skill.name, skill);
  return {
    list: [...list.values()],
    broken: found.filter((skill) => typeof skill === "string"),
  };
}

/** The skills of one folder; a string names one that is broken. */
async function readSkills(folder: string): Promise<(Skill | string)[]> {
  const entries = await readdir(folder, { withFileTypes: true }).catch(() => []); // most have none
  const names = entries
    .filter((entry) => !entry.isFile() && !entry.name.startsWith("."))
    .map((entry) => entry.name)
    .toSorted(); // the prompt must not depend on the file system's order
  return Promise.all(names.map((name) => readSkill(join(folder, name), name)));
}

async function readSkill(folder: string, name: string): Promise<Skill | string> {
  const path = join(folder, "SKILL.md");
  try {
    const { head } = split(await readFile(path, "utf8"));
    const parsed = frontMatter.safeParse(Bun.YAML.parse(head));
    if (!parsed.success) {
      const issue = parsed.error.issues[0];
      return `Skill ${path} is left out: ${issue?.path.join(".") ?? ""}: ${issue?.message ?? ""}`;
    }
    if (parsed.data.name !== name)
      return `Skill ${path} is left out: its name is "${parsed.data.name}", its folder's "${name}"`;
    return { ...parsed.data, folder };
  } catch (error) {
    return `Skill ${path} is left out: ${messageOf(error)}`;
  }
}

/** Front matter and body. Throws where there is no front matter. */
function split(text: string): { head: string; body: string } {
  const match = /^\uFEFF?---\r?\n([\s\S]*?)\r?\n---[ \t]*(?:\r?\n|$)/.exec(text);
  if (!match) throw new Error("it does not begin with front matter between two lines of ---");
  return { head: match[1] ?? "", body: text.slice(match[0].length) };
}

/** The lines of the system prompt that name the skills; "" where there are none. */
export function describeSkills(skills: SkillIndex): string {
  if (skills.list.length === 0) return "";
  const lines = skills.list.map(
    ({ name, description }) => `- ${name}: ${description.replaceAll(/\s+/g, " ")}`,
  );
  return `\n# Skills\nWhen a task fits one, load it first with the Skill tool.\n${lines.join("\n")}\n`;
}

/** Runs the Skill tool. */
export async function loadSkill(skills: SkillIndex, call: ToolCall): Promise<ToolOutput> {
  const wanted = call.input["skill"];
  const skill = skills.list.find(({ name }) => name === wanted);
  if (!skill) {
    const names = skills.list.map(({ name }) => name).join(", ");
    return {
      content: `There is no skill ${JSON.stringify(wanted)}. There are: ${names}.`,
      isError: true,
    };
  }
  try {
    const { body } = split(await readFile(join(skill.folder, "SKILL.md"), "utf8"));
    const cut = body.length > maxSkillChars ? `\n[cut at ${maxSkillChars} characters]` : "";
    return {
      content: `The files of this skill are in ${skill.folder}.\n\n${body.slice(0, maxSkillChars)}${cut}`,
    };
  } catch (error) {
    return {
      content: `Skill ${skill.name} could not be read: ${messageOf(error)}.`,
      isError: true,
    };
  }
}
