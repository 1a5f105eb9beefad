// An adapter on Node's ws that keeps the rules of docs/writing-an-adapter.md.
//
// node adapter.mjs URL [comes-back]     Each line on standard input asks a message.
// With "comes-back" it breaks one rule: it connects again although another has taken its place.

import { createInterface } from "node:readline";
import WebSocket from "ws";

const REPLACED = 4000;
const FIRST_PAUSE = 100;

const [url, fault] = process.argv.slice(2);
const pending = new Map();
let socket = null;
let sessionId = null;
let seen = 0;
let failed = 0;
let asked = 0;

const send = (frame) => socket.send(JSON.stringify(frame));

function receive(frame) {
  if (frame.type === "registered") {
    failed = 0;
    if (!frame.resumed) seen = 0;
    sessionId = frame.session_id;
    for (const message of pending.values()) send(message);
    return;
  }
  if (!(frame.seq > seen)) return;
  seen = frame.seq;
  if (frame.type === "accepted") pending.delete(frame.request_id);
  if (["response_end", "cancelled", "error"].includes(frame.type)) {
    pending.delete(frame.request_id);
    send({ type: "ack", seq: seen });
  }
}

function connect() {
  socket = new WebSocket(url);
  socket.on("open", () =>
    send({
      type: "register",
      node_id: "on-ws",
      platform: "test",
      capabilities: ["accepted", "resume"],
      session_id: sessionId,
      last_seq: seen,
    }),
  );
  socket.on("message", (text) => receive(JSON.parse(text)));
  socket.on("error", () => {}); // "close" comes after it
  socket.on("close", (code) => {
    if (code === REPLACED && fault !== "comes-back") process.exit(0);
    setTimeout(connect, FIRST_PAUSE * 2 ** failed * (0.75 + Math.random() / 4));
    failed += 1;
  });
}

createInterface({ input: process.stdin }).on("line", () => {
  asked += 1;
  const message = {
    type: "message",
    id: `m-${asked}`,
    user: { id: "test-u", platform_id: "u" },
    channel: { id: "test-c" },
    content: "hello",
  };
  pending.set(message.id, message);
  if (socket.readyState === WebSocket.OPEN) send(message);
});
connect();
