"""An MCP server on stdio for tests: plain JSON-RPC, well behaved or not, by its first argument."""

import base64
import json
import os
import socket
import sys
import time

mode = sys.argv[1] if len(sys.argv) > 1 else "good"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(60)


def say(message):
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def text(words, **rest):
    return {"content": [{"type": "text", "text": words}], **rest}


def reach(where):
    """What can be seen from in here: a file, or a port of the machine."""
    try:
        if "port" in where:
            socket.create_connection(("127.0.0.1", where["port"]), 2).close()
            return text("reached")
        return text(open(where["path"]).read())
    except OSError as error:
        return text(f"no: {error.strerror}", isError=True)


def flood(line):
    while True:
        sys.stdout.write(line)


def wait(seconds):
    open("begun", "w").close()
    time.sleep(seconds)
    return text("waited")


def change(_):
    tools["added"] = lambda _: text("new")
    say({"method": "notifications/tools/list_changed"})
    return text("changed")


def lose(name):
    del tools[name]
    return text("lost")


def image(data):
    return {"type": "image", "mimeType": "image/png", "data": base64.b64encode(data).decode()}


LINK = {"type": "resource_link", "uri": "file:///a", "name": "a file", "description": "to read"}
tools = {
    "echo": lambda args: text(args["text"]),
    "pid": lambda _: text(str(os.getpid())),
    "env": lambda _: text(json.dumps(dict(os.environ))),
    "cwd": lambda _: text(os.getcwd()),
    "reach": reach,
    "wait": lambda args: wait(args["seconds"]),
    "fail": lambda _: text("it is broken", isError=True),
    "shout": lambda _: {}["x" * 1_000_000],
    "die": lambda _: (sys.stderr.write("out of cheese\n"), os._exit(3)),
    "flood": lambda _: flood("x" * 1000 + "\n"),
    "notify": lambda _: flood('{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":1}}\n'),
    "endless": lambda _: flood("x" * 1000),
    "big": lambda args: text("x" * args["size"]),
    "wrong": lambda _: {"content": "no list"},
    "structured": lambda _: {"content": [], "structuredContent": {"celsius": 21}},
    "images": lambda args: {"content": [image(PNG)] * args["count"]},
    "page": lambda _: {"content": [image(b"<html>")]},
    "link": lambda _: {"content": [LINK]},
    "change": change,
    "lose": lambda args: lose(args["name"]),
}
if mode == "odd":
    for name in ["a.b", "a/b", "a_b", "x" * 200, "caf\u00e9 \x1b[31m"]:
        tools[name] = lambda _, name=name: text(name)
if mode == "many":
    tools = {f"tool{i}": lambda _: text("one of many") for i in range(1000)}


def describe(name):
    schema = {"type": "object", "properties": {"text": {"type": "string"}}}
    words = f"does {name}"
    if mode == "many":
        schema["properties"]["long"] = {"type": "string", "description": "y" * 20_000}
        words = "z" * 100_000
    return {"name": name, "description": words, "inputSchema": schema}


def answer(method, params):
    if method == "initialize":
        info = {"name": "test", "version": "1"}
        capabilities = {"tools": {"listChanged": True}}
        return {"protocolVersion": params["protocolVersion"], "capabilities": capabilities, "serverInfo": info}
    if method == "tools/list":
        names = list(tools)
        start = int(params.get("cursor") or 0)
        more = {"nextCursor": str(start + 10)} if start + 10 < len(names) else {}
        return {"tools": [describe(name) for name in names[start : start + 10]], **more}
    if params["name"] not in tools:
        raise KeyError("Unknown tool: " + params["name"])
    return tools[params["name"]](params.get("arguments") or {})


if mode == "broken":
    sys.stderr.write("no configuration found\n")
    sys.exit(2)
if mode == "garbage":
    flood("hello, I am a server that says nothing\n{}\n[1]\n")
if os.path.exists("starts"):
    with open("starts", "a") as file:
        file.write("x")
for line in sys.stdin:
    request = json.loads(line)
    if request.get("method") == "notifications/cancelled":
        open("cancelled", "w").close()
    if "id" not in request or mode == "silent":
        continue
    try:
        say({"id": request["id"], "result": answer(request["method"], request.get("params") or {})})
    except KeyError as error:
        say({"id": request["id"], "error": {"code": -32602, "message": str(error)}})
