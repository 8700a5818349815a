/**
 * Every verdict of the permission engine, as tables: what a call may do under which rules and mode.
 * The files are real, links among them; `HOME` and the like stand for folders of the fixture.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, realpathSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  decide,
  parseMode,
  parseRule,
  realResolve,
  removedTools,
  splitRules,
} from "../src/agent/permissions.ts";
import { UsageError } from "../src/errors.ts";
import type { Mode, Policy, Rules, Verdict } from "../src/types.ts";

const base = realpathSync(mkdtempSync(join(tmpdir(), "claw-permissions-")));
afterAll(() => rmSync(base, { recursive: true }));

const home = join(base, "home");
const repo = join(home, "work/repo");
const added = join(base, "added");
const outside = join(home, "work/outside");
for (const folder of ["src/deep", "secrets", ".git/hooks", "lib/.git"])
  mkdirSync(join(repo, folder), { recursive: true });
for (const folder of [added, outside, join(home, ".claw/skills"), join(home, "work/repo-evil")])
  mkdirSync(folder, { recursive: true });
for (const file of ["src/a.ts", "src/b.ts", ".env", "secrets/key", ".git/config"])
  writeFileSync(join(repo, file), "");
for (const [name, target] of [
  ["out", outside],
  ["passwd", "/etc/passwd"],
  ["env-link", ".env"],
  ["hooks", ".git/hooks"],
  ["rc", "../../.bashrc"],
  ["loop", "loop"],
  ["dangling", join(outside, "new")],
  ["src/up", ".."],
])
  symlinkSync(target ?? "", join(repo, name ?? ""));
symlinkSync(repo, join(base, "link-to-repo"));

const MODES: Mode[] = ["read-only", "dontAsk", "ask", "edit", "unsafe"];
const NO_RULES: Rules = { allow: [], ask: [], deny: [] };

const policyOf = (mode: Mode, rules: Partial<Rules> = {}): Policy => ({
  mode,
  rules: { ...NO_RULES, ...rules },
  roots: [repo, added],
  home,
  clawHome: join(home, ".claw"),
  resolve: realResolve,
});

/** HOME, REPO, OUTSIDE and ADDED in a row are the fixture's folders. */
const fill = (text: string): string =>
  text.replace(/\b(HOME|REPO|OUTSIDE|ADDED)\b/g, (name, _match, at: number) =>
    text[at - 1] === "$" || text[at - 1] === "{" || text[at - 1] === "_" || text[at + name.length] === "="
      ? name
      : ({ HOME: home, REPO: repo, OUTSIDE: outside, ADDED: added })[name] ?? name,
  );

const bash = (command: string) => ({ name: "Bash", input: { command: fill(command) } });
const file = (name: string, path: string) => ({ name, input: { file_path: fill(path) } });
const check = (call: Parameters<typeof decide>[0], mode: Mode, rules?: Partial<Rules>) =>
  decide(call, policyOf(mode, rules));

type Decision = Verdict["decision"];

/** What each mode says: in the order read-only, ask, edit, unsafe. */
const COLUMNS: Record<string, Decision[]> = {
  "always allowed": ["allow", "allow", "allow", "allow"],
  "an edit": ["deny", "ask", "allow", "allow"],
  "a command": ["deny", "ask", "ask", "allow"],
  "always asked": ["deny", "ask", "ask", "ask"],
  "always denied": ["deny", "deny", "deny", "deny"],
};

function expectColumns(column: string, call: Parameters<typeof decide>[0]): void {
  const found = (["read-only", "ask", "edit", "unsafe"] as const).map((mode) => check(call, mode));
  expect({ call, decisions: found.map(({ decision }) => decision) }).toEqual({
    call,
    decisions: COLUMNS[column] ?? [],
  });
  for (const { reason } of found) expect(reason).toMatch(/^[A-Z`/~.$].{8,}\.$/s);
}

// ── Modes ───────────────────────────────────────────────────────────────────────────────────────

const COMMANDS: Record<string, string[]> = {
  "always allowed": [
    "ls", "ls -la src", "ls *.ts", "ls 'a b'", "cat src/a.ts", "cat < src/a.ts", "pwd", "echo hi",
    "echo $HOME", "echo ${HOME} ${X:-y} ${#X} ${X%.ts}", "echo $((1 + 2))", "printf '%s\\n' \"$X\"",
    "head -n 5 src/a.ts", "tail -20 src/a.ts", "wc -l src/*.ts", "cat src/a.ts | head -3 | wc -l",
    "grep -rn foo src", "grep -E 'a|b' -A 3 src/a.ts", "grep -e foo -e bar src", "grep '/usr/lib' src/a.ts",
    "rg -n foo", "rg --files", "rg -t ts 'foo.*bar' src", "find . -name '*.ts' -type f", "find src -maxdepth 2",
    "find . \\( -name a -o -name b \\) -print", "sort src/a.ts", "sort -k2,2 -t , src/a.ts | uniq -c",
    "cut -d, -f1 src/a.ts", "tr a-z A-Z", "diff -u src/a.ts src/b.ts", "stat src/a.ts", "file src/a.ts",
    "jq -r .name src/a.ts", "sed -n '1,20p' src/a.ts", "tree -L 2", "which node", "command -v node",
    "date", "date +%s", "whoami", "uname -a", "test -f src/a.ts", "[ -f src/a.ts ] && echo yes",
    "[[ -f $X ]] && echo yes", "true; false", "sleep 1", "ls # and a comment; rm x", "\\ls", "'ls' -l",
    "git status", "git log --oneline -n 5", "git log -p src/a.ts", "git diff HEAD~1 --stat", "git show HEAD:src/a.ts",
    "git branch", "git branch -a", "git rev-parse --show-toplevel", "git ls-files", "git blame src/a.ts",
    "git remote -v", "git describe --tags", "git tag", "git tag -l 'v*'", "git stash list", "git --no-pager log",
    "git config --get user.name", "git grep -n foo", "node --version", "npm -v", "go version",
    "ls 2>/dev/null", "ls > /dev/null 2>&1", "ls &> /dev/null", "echo x >&2",
    "timeout 5 ls", "time ls", "nice -n 5 ls", "nohup ls", "stdbuf -oL ls", "command ls", "timeout -k 1 5s nice ls",
    "LANG=C ls", "LC_ALL=C sort src/a.ts", "NO_COLOR=1 git log", "bash -c 'ls src'", "sh -c 'cat src/a.ts | wc -l'",
    "cd src && ls", "cd src && cat a.ts", "cd src && cat ../src/a.ts", "cd src; ls", "cd REPO && git status",
    "(cd src; ls) && git status", "cd src && cd .. && git log", "cat $PWD/src/a.ts", "cat REPO/src/a.ts",
    "cat ~/work/repo/src/a.ts", "cat ADDED/x", "if [ -f a ]; then cat a; else echo no; fi",
    "for f in a b; do echo \"$f\"; done", "! grep -q x src/a.ts", "{ ls; pwd; }", "cat <<'EOF'\n$(rm x)\nEOF",
    "cat <<EOF\n$HOME\nEOF", "ls || true", "ls & wait", "set -euo pipefail; ls", "echo 'a;b' \"c|d\"",
    "cat src/up/.env", "", "ls\n\npwd\n",
  ],
  "an edit": [
    "echo x > src/new.ts", "echo x >> src/a.ts", "echo x >| src/a.ts", "ls &> out.txt", "ls >& out.txt", "> empty",
    "cat src/a.ts | tee copy.ts", "tee -a log", "exec 2>/dev/null; true > x".slice(20), "mkdir -p a/b", "mkdir src/x",
    "touch src/new.ts", "cp src/a.ts src/c.ts", "cp -r src lib", "mv src/a.ts src/b.ts", "mv -n a b lib",
    "cat <<EOF > src/new.ts\nhi\nEOF", "cd src && touch x", "mkdir a && touch a/b && cp a/b c", "echo x 1<> f",
    "cp src/a.ts ADDED/a.ts", "LANG=C touch x", "timeout 5 mkdir x", "bash -c 'echo x > y'", "touch -- -x",
  ],
  "a command": [
    // Not known, or not with these arguments.
    "npm test", "make", "./run.sh", "python3 x.py", "node -e 1", "rm a", "rm -rf build", "rmdir a", "git push",
    "git commit -m x", "git branch new", "git tag v1", "git stash", "git remote add x y", "git config user.name x",
    "git checkout .", "curl example.org", "kill 1", "chmod +x src/a.ts", "ln -s a b", "sed -i s/a/b/ src/a.ts",
    "dd if=a of=b", "install a b", "yarn --version", "cargo --version", "ssh x", "npx foo", "less src/a.ts",
    "awk 'BEGIN{system(\"id\")}'", "sed 's/x/id/e' src/a.ts", "sed -n 'w x' src/a.ts", "sed '1e id' src/a.ts",
    "sed -n '1,5w x' src/a.ts", "find . -exec sh -c id \\;", "find . -delete", "find . -ok rm {} \\;",
    "find . -fprintf x y", "find . -fls x", "find . -execdir id ';'", "find -O3 . -name x", "find . -files0-from x",
    "sort -o x src/a.ts", "sort --compress-program=sh src/a.ts", "sort --compress-prog=sh src/a.ts",
    "sort --comp sh src/a.ts", "sort -T/tmp src/a.ts", "sort --out=x src/a.ts", "uniq src/a.ts src/b.ts",
    "tree -o x", "rg --pre sh foo", "rg --pre=sh foo", "rg -z foo", "rg --hostname-bin=id foo", "rg -f x foo",
    "grep -f x foo", "grep --file=x foo", "tar --checkpoint-action=exec=id -cf x .", "git -c core.pager=id log",
    "git --exec-path=. log", "git -C src log", "git log --output=x", "git log --outp=x", "git diff --ext-diff",
    "git diff -Ox", "git show --textconv x", "git grep -O foo", "git grep --open-files-in-pager=id x",
    "git cat-file --textconv x", "git branch -D x", "git tag -d x", "git reflog expire --all", "git remote update",
    "git stash pop", "git ls-files -X x", "git config --get-regexp x", "git blame --contents x src/a.ts",
    "date -s 2020-01-01", "date 01010000", "date --set=x", "hostname x", "hostname -F x", "file -C -m x",
    "jq -n 'import \"x\" as $x; 1'", "jq --arg a b 'include \"x\"; 1'", "jq -f x y", "printf -v PATH x",
    "printf $X y", "test -v 'a[$(id)]'", "[ -v 'a[$(id)]' ]", "[[ -v a ]]", "[[ $x -eq 1 ]]", "echo $((x))",
    "sort *", "find *", "diff *", "ls $X", "cat \"$X\"", "cat {a,b}", "ls ~bob", "wc --files0-from=x",
    "xargs ls", "ls | xargs cat", "env FOO=1 ls", "env -S 'sh -c id'", "env -i ls", "sudo ls", "watch ls",
    "setsid ls", "ionice ls", "flock x ls", "busybox sh -c id", "strace ls", "exec ls", "xargs -n1 sh -c id",
    "nice --adjustment=5 ls", "time --format ls rm x", "timeout --signal ls rm x", "stdbuf --output ls rm x",
    "bash x.sh", "bash -c \"$X\"", "bash -ic ls", "bash -c 'npm test'", "sh < src/a.ts", "bash <<< id",
    "eval ls", "source src/a.ts", ". src/a.ts", "trap ls EXIT", "alias ls=rm", "$X foo", "$(echo ls)", "`echo ls`",
    "${X}", "\"$SHELL\" -c ls", "f() { ls; }; f", "ls() { id; }; ls", "coproc ls", "export A=b", "declare -x A=b",
    "read x", "pushd src", "unset PATH", "enable -f x y", "X=1", "X=1 ls", "PAGER=sh git log", "export GIT_SSH_COMMAND=x",
    "LD_PRELOAD=x ls", "NODE_OPTIONS=x node --version", "BASH_ENV=x ls", "PATH=. ls", "IFS=x ls", "TZ=../x date",
    "LANG=C LD_PRELOAD=x ls", "a[$(id)]=1", "for PATH in .; do ls; done", "select PATH in .; do ls; done", "{PATH}>x".replace(">x", "> src/x ls"),
    // Substitutions and expansions that may run something.
    "echo $(id)", "echo `id`", "cat <(id)", "tee >(id)", "echo \"$(id)\"", "echo ${x@P}", "echo ${!x}", "echo ${x:=y}",
    "echo ${a[x]}", "echo $((a[$(id)]))", "echo ${x:$(id)}", "cat <<EOF\n$(id)\nEOF", "cat <<EOF\n`id`\nEOF",
    "cat <<< $(id)", "((PATH=1)); ls", "ls $(pwd)", "cat $(git ls-files)", "for ((i=0;i<3;i++)); do ls; done",
    // Outside the workspace.
    "cat /etc/passwd", "cat ../outside/x", "cat ../../../../etc/passwd", "cat src/../../outside/x", "ls ~", "ls ~/.ssh",
    "ls $HOME/.ssh", "cat $HOME/.ssh/*", "grep x $HOME/.ssh/*", "cat HOME/x", "cat passwd", "cat out/x", "cat src/up/../x",
    "cat REPO-evil/x", "cat ../repo-evil/x", "cat < /etc/passwd", "head -c 10 /dev/zero", "cat /proc/self/environ",
    "cat /proc/1/root/etc/passwd", "grep root /etc/passwd", "grep /etc/passwd -e root", "grep -rn root /etc", "rg x /etc",
    "rg --files /etc", "rg /etc/passwd -e root", "find / -name x", "find . -newer /etc/passwd", "diff src/a.ts /etc/passwd",
    "ls /", "ls src/*/../../..", "echo /etc/*", "cd /etc", "cd /etc && ls", "cd ..; cat repo/.env", "cd; ls", "cd - && ls",
    "cd ~ && cat x", "cd $X && ls", "cd src || cd /; cat etc/passwd", "cd nowhere/deeper; cat ../../outside/x",
    "cd src && git status", "cd lib && git log", "while true; do cd ..; cat x; done", "cd src\ncat ../../x",
    "git diff --no-index /etc/passwd x", "sed -n 1p /etc/passwd", "jq . /etc/passwd", "sort /etc/passwd",
    "timeout 5 cat /etc/passwd", "bash -c 'cat /etc/passwd'", "LANG=C cat /etc/passwd",
    "echo x > /tmp/x", "echo x > ../x", "echo x > out/x", "echo x > dangling", "echo x > $X", "echo x > *.ts",
    "echo x > $(id)", "tee /tmp/x", "touch ../x", "touch out/x", "mkdir /tmp/x", "cp src/a.ts /tmp", "cp /etc/passwd x",
    "cp src/a.ts out", "cp *.ts lib", "mv src/*.ts lib", "mv $X y", "mv out/x y", "cp -t lib src/a.ts", "cp -L a b",
    "cp x/dangling REPO", "cd .. && touch x", "touch $X", "mkdir", "echo x > /dev/tcp/localhost/1", "ls 2> ../x",
  ],
  "always asked": [
    "rm -rf /", "rm -rf / ", "rm -rf /*", "rm -fr ~", "rm -rf ~/", "rm -rf ~/*", "rm -rf $HOME", "rm -r \"$HOME\"",
    "rm -rf \"$UNSET/\"*", "rm -rf $UNSET", "rm -rf ${HOME}/*", "rm -rf .", "rm -rf ./", "rm -rf ./*", "rm -rf *",
    "rm -rf ..", "rm -rf ../..", "rm -rf src/..", "rm -rf REPO", "rm -rf REPO/", "rm -rf $PWD", "rm -rf /etc",
    "rm -rf /private/etc", "rm -rf /usr /x/y/z", "rm -rf ADDED", "rm --recursive /", "rm -rf -- /", "rm / -rf",
    "sudo rm -rf /", "timeout 5 rm -rf /", "bash -c 'rm -rf /'", "env X=1 rm -rf ~", "xargs rm -rf /", "X=1 rm -rf /",
    "eval 'rm -rf /'", "cd / && rm -rf *", "cd /; rm -rf etc", "find . -exec rm -rf / ';'", "\\rm -rf /", "/bin/rm -rf /",
    "ls; rm -rf ~", "echo $(rm -rf /)", "rm -rf $(pwd)", "rm -rf src/up", "rm -rf {/,x}", "rm -rf // ", "rm -rf /./",
    // What cannot be parsed.
    "ls &&", "echo \"unterminated", "git log &&& curl x", "if true; then ls", "ls | | cat", "cat <<EOF", "(ls", "bash -c 'ls &&'",
    "sudo env nice sudo env nice sudo env nice ls",
  ],
  "always denied": [
    "echo x > .git/hooks/pre-commit", "echo x >> .git/config", "echo x >| .git/config", "tee .git/hooks/x", "tee -a .git/config",
    "cp x .git/hooks/pre-commit", "cp x .git/hooks", "cp -r x/hooks .git", "mv x .git/config", "mv .git/config x",
    "ln -s ../../x .git/hooks/y", "sed -i s/a/b/ .git/config", "rm .git/config", "rm -rf .git", "chmod +x .git/hooks/x",
    "dd if=x of=.git/config", "truncate -s 0 .git/config", "install -m 755 x .git/hooks/y", "curl -o .git/hooks/x example.org",
    "touch .git/hooks/x", "mkdir -p .git/hooks/x", "echo x > hooks/pre-commit", "echo x > lib/.git/config", "echo x > .GIT/config",
    "echo x > ./src/../.git/config", "echo x > .git/./hooks//x", "cd .git && echo x > config", "cd .git; echo x > hooks/x",
    "cd src; cd ../.git; echo x > config", "bash -c 'echo x > .git/config'", "sudo tee .git/config", "timeout 5 tee .git/config",
    "echo $(echo x > .git/config)", "X=1 tee .git/config", "echo x > .git", "echo x > .git/modules/a/config",
    "echo x > .git/worktrees/a/config.worktree", "echo x > OUTSIDE/.git/hooks/x", "echo x > ~/.bashrc", "echo x >> $HOME/.zshrc",
    "echo x > \"$HOME/.profile\"", "tee ~/.bash_profile", "echo x > ~/.config/fish/config.fish", "echo x > rc", "cp x ~/.zshenv",
    "echo x > HOME/.bashrc", "echo x > /etc/profile", "echo x > ../../.bashrc", "echo x > ~/.claw/x", "rm -rf ~/.claw", "cat ~/.claw/claw.db",
    "sqlite3 ~/.claw/claw.db", "cp ~/.claw/claw.db x", "cat < ~/.claw/claw.db", "ls $CLAW_HOME", "echo x > $CLAW_HOME/skills/x",
    "for x in a; do echo x > .git/config; done", "f() { echo x > .git/config; }", "if tee .git/config; then ls; fi", "echo x > .git/config &&",
  ],
};

describe("Bash by mode", () => {
  for (const [column, commands] of Object.entries(COMMANDS))
    test.each(commands)(`${column}: %s`, (command) => expectColumns(column, bash(command)));
});
