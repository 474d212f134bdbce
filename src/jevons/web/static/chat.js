// Talks to the model through the same door as everybody.
import { at, make, seconds } from "./format.js";

const messages = [];
let stopper = null, models = "";

export function allow(is, who) {
  at("chat").hidden = !is;
  if (!who) return;
  const names = [...new Set(who.models)].filter(Boolean).sort();
  if (names.join() === models) return;
  models = names.join();
  at("send").disabled = !models || stopper !== null;
  at("model").replaceChildren(...names.map((name) => make("option", {}, name)));
}

function say(kind, text = "") {
  const line = make("p", { class: kind }, text);
  at("log").append(line);
  at("log").scrollTop = at("log").scrollHeight;
  return line;
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: ?/, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function answer() {
  const began = performance.now(), line = say("it");
  stopper = new AbortController();
  at("send").disabled = true; at("stop").disabled = false;
  at("log").setAttribute("aria-busy", "true");
  let text = "", first = null, worker = null, tokens = 0;
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST", signal: stopper.signal, headers: { "content-type": "application/json" },
      body: JSON.stringify({ model: at("model").value, messages, stream: true, max_tokens: 256 }),
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    worker = response.headers.get("x-jevons-worker");
    for await (const event of events(response.body)) {
      if (event.error) throw new Error(event.error.message);
      const piece = event.choices?.[0]?.delta?.content;
      if (!piece) continue;
      first ??= performance.now() - began;
      text += piece; tokens += 1;
      line.textContent = text;
      at("log").scrollTop = at("log").scrollHeight;
    }
  } catch (error) {
    if (error.name !== "AbortError") say("wrong", `No answer: ${error.message}`);
  }
  if (text) {
    messages.push({ role: "assistant", content: text });
    const whole = performance.now() - began;
    say("how", `${worker ?? "worker not told"}: first token after ${seconds(first / 1e3)}, ${tokens} pieces in ${seconds(whole / 1e3)}`);
  } else {
    messages.pop();
    line.remove();
  }
  at("log").removeAttribute("aria-busy");
  stopper = null;
  at("send").disabled = !models; at("stop").disabled = true;
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const words = at("words").value.trim();
  if (!words || stopper || !models) return;
  if (!messages.length) at("log").replaceChildren();
  messages.push({ role: "user", content: words });
  say("me", words);
  at("words").value = "";
  answer();
});
at("words").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); at("ask").requestSubmit(); }
});
at("stop").addEventListener("click", () => stopper?.abort());
