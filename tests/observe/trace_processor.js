// Perfetto's trace processor between standard input and output, as its own messages.
//
//     node trace_processor.js FOLDER
//
// FOLDER holds its WebAssembly and engine_bundle.js, which is made for a web worker: it gets a
// worker's names here, and files in place of downloads.
"use strict";

const fs = require("node:fs");
const path = require("node:path");

const folder = process.argv[2];

class XMLHttpRequest {
  open(_method, name) {
    this.file = path.join(folder, path.basename(name));
  }
  send() {
    this.response = new Uint8Array(fs.readFileSync(this.file)).buffer;
  }
}

function put(bytes) {
  for (let done = 0; done < bytes.length; ) {
    try {
      done += fs.writeSync(1, bytes, done);
    } catch (error) {
      if (error.code !== "EAGAIN") throw error; // the pipe is full
    }
  }
}

console.log = console.warn = () => {};
const worker = { location: { href: "" } };
const names = { self: worker, WorkerGlobalScope: Object, process: undefined, XMLHttpRequest };
const bundle = fs.readFileSync(path.join(folder, "engine_bundle.js"), "utf8");
new Function(...Object.keys(names), bundle)(...Object.values(names));

const port = { postMessage: put };
worker.onmessage({ data: port });
setImmediate(() => {
  process.stdin.on("data", (chunk) => port.onmessage({ data: new Uint8Array(chunk) }));
});
