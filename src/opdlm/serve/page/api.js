/* The server's API as the page asks it: models, and streams of events with drafts. */

const KEY = "opdlm-api-key"; // of the browser's session storage: it ends with the tab

export class ServerError extends Error {
  /* status: of HTTP; 0 where no answer came. */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const useKey = (key) => sessionStorage.setItem(KEY, key);

/* Cards of the models: {id, block_size, decodings, infill, defaults}. */
export const models = async () => (await (await ask("v1/models")).json()).data;

/* The events of one request, as objects. Throws ServerError, or AbortError where `signal` ended it. */
export async function* stream(path, body, signal) {
  const options = { stream: true, diffusing: true, stream_options: { include_usage: true } };
  const answer = await ask(path, { method: "POST", body: JSON.stringify({ ...body, ...options }), signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reached(reader.read());
    if (done) throw new ServerError(0, "The connection ended before the text was complete.");
    const events = (held + value).split("\n\n");
    held = events.pop();
    for (const event of events) {
      const data = event.slice("data: ".length);
      if (data === "[DONE]") return;
      const content = JSON.parse(data);
      if (content.error) throw new ServerError(500, sentence(content.error.message));
      yield content;
    }
  }
}

async function ask(path, options = {}) {
  const headers = { "Content-Type": "application/json" };
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  const answer = await reached(fetch(path, { ...options, headers }));
  if (answer.ok) return answer;
  const content = await answer.json().catch(() => null); // a proxy may answer with a page of its own
  const message = content?.error?.message ?? `it answered with status ${answer.status}`;
  throw new ServerError(answer.status, sentence(message));
}

async function reached(promise) {
  try {
    return await promise;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, "The server cannot be reached. Is it still running?");
  }
}

const sentence = (message) => `The server says: ${message}.`;
