// The page: wires the chat and the engine's view to the keyboard and to the API key.

import { giveKey, hasKey, keys } from "./api.js";
import { Chat } from "./chat.js";
import { Engine } from "./engine.js";

const at = (id) => document.getElementById(id);
const chat = new Chat();
const engine = new Engine();

function start() {
  chat.loadModels().catch(() => {}); // the engine's view says what is wrong, and tries again
  engine.connect();
}

keys.addEventListener("key-needed", () => {
  if (!at("key-form").hidden) return;
  at("key-form").hidden = false;
  at("key-refused").hidden = !hasKey();
  at("key").focus();
});

keys.addEventListener("key-given", () => {
  at("key-form").hidden = true;
  at("prompt").focus();
  start();
});

at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  giveKey(at("key").value.trim());
  at("key").value = "";
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && chat.stop()) event.preventDefault();
});

start();
