/**
 * Which files a search looks at, by their names: Grep's `glob` and `type`, and what a Glob's pattern
 * says about where to look.
 *
 * Invariant: globs mean what they mean to `rg --glob`: without a slash they hold at any depth, `!`
 * leaves out, the last one that matches decides. Nothing here touches a file.
 */
import { UsageError } from "../errors.ts";

/** ripgrep's names of types, with the extensions or whole names of their files. */
const TYPES: Record<string, string> = {
  c: "c h H",
  cmake: "cmake CMakeLists.txt",
  cpp: "C cc cpp cxx c++ H h hh hpp hxx h++ inl",
  csharp: "cs",
  css: "css scss",
  docker: "Dockerfile Containerfile dockerfile",
  elixir: "ex exs eex heex",
  erlang: "erl hrl",
  golang: "go",
  graphql: "graphql graphqls gql",
  haskell: "hs lhs",
  html: "htm html ejs",
  java: "java jsp jspx properties",
  js: "js jsx mjs cjs vue",
  json: "json composer.lock sarif jsonc jsonl",
  kotlin: "kt kts",
  make: "mk mak Makefile makefile GNUmakefile",
  md: "md markdown mdx mdown mkd",
  ocaml: "ml mli mll mly",
  perl: "pl pm t plx",
  php: "php php3 php4 php5 phtml",
  py: "py pyi",
  r: "R r Rmd Rnw",
  ruby: "rb rbw gemspec Gemfile Rakefile",
  rust: "rs",
  sh: "sh bash zsh ksh csh .bashrc .bash_profile .profile .zshrc",
  tf: "tf tfvars",
  toml: "toml Cargo.lock",
  ts: "ts tsx mts cts",
  xml: "xml dtd xsd xsl xslt rng xhtml",
  yaml: "yaml yml",
};
/** Types that are called as their files end. */
const EXTENSIONS =
  "asm clj cs csv dart fs go jl less lua nix proto sass scala sql svelte swift tex txt vim vue zig";
const ALIASES: Record<string, string> = {
  javascript: "js",
  markdown: "md",
  python: "py",
  typescript: "ts",
};

/** Throws a UsageError for an unknown type. An extension is a type too. */
export function typeFilter(type: string): (name: string) => boolean {
  const known = TYPES[ALIASES[type] ?? type]?.split(" ");
  if (!known && ![EXTENSIONS, ...Object.values(TYPES)].join(" ").split(" ").includes(type)) {
    throw new UsageError(
      `There is no type ${type}; use glob, or one of ${Object.keys(TYPES).join(", ")}, ${EXTENSIONS.replaceAll(" ", ", ")}.`,
    );
  }
  const names = new Set(known ?? [type]);
  return (name) => names.has(name.slice(name.lastIndexOf(".") + 1)) || names.has(name);
}

/** `paths` are the spellings of one file's path from where a person may count. */
export type PathFilter = (paths: readonly string[]) => boolean;

export function globFilter(globs: string): PathFilter {
  const rules = splitList(globs).map(ruleOf);
  const isShownAtFirst = rules.every((rule) => rule.isNot);
  return (paths) =>
    rules.reduce(
      (isShown, rule) => (paths.some((path) => rule.matches(path)) ? !rule.isNot : isShown),
      isShownAtFirst,
    );
}

/** At commas and spaces outside of braces. */
function splitList(globs: string): string[] {
  return globs.match(/(?:\{[^{}]*\}|\\.|[^\s,])+/g) ?? [];
}

function ruleOf(text: string): { isNot: boolean; matches(path: string): boolean } {
  const isNot = text.startsWith("!");
  const pattern = text
    .slice(isNot ? 1 : 0)
    .replace(/^\.?\//, (start) => (start === "/" ? "/" : ""));
  const isDeep = !pattern.slice(0, -1).includes("/");
  const bare = pattern.replace(/^\//, "").replace(/\/$/, "/**");
  const own = new Bun.Glob(isDeep ? `**/${bare}` : bare);
  // What leaves out a folder leaves out what is in it.
  const below = new Bun.Glob(isDeep ? `**/${bare}/**` : `${bare}/**`);
  return { isNot, matches: (path) => own.match(path) || (isNot && below.match(path)) };
}

/** Where the files of a Glob's pattern are, as a path, what is to match there, and how deep. */
export function splitPattern(pattern: string): { base: string; rest: string; levels: number } {
  const segments = pattern.split("/");
  const magic = segments.findIndex((segment) => /[*?[\]{}!\\]/.test(segment));
  const first = magic < 0 ? segments.length - 1 : magic;
  const base = segments.slice(0, first).join("/") || (pattern.startsWith("/") ? "/" : ".");
  const rest = segments.slice(first).join("/") || "**";
  const isDeep = rest.includes("**") || /\{[^}]*\//.test(rest);
  return { base, rest, levels: isDeep ? Infinity : rest.split("/").length };
}

/** Names that the pattern spells out. */
export function namesIn(pattern: string): Set<string> {
  return new Set(pattern.split("/").filter((segment) => !/[*?[\]{}!\\]/.test(segment)));
}
