// Drives examples/browser for tests/browser.rs, in a real browser, and tells the test's server what it saw.
import { Refused, complete, createImport, follow, headersToSend, importFile, upload } from "./upload.js";

const asked = new URLSearchParams(location.search);
const api = asked.get("api");

/** A CSV of `rows` rows of about a kilobyte. */
function file(rows) {
  const line = "a cell of about one hundred characters so that a file of some size has not so many rows in it all told ";
  const lines = ["id,note"];
  for (let id = 1; id <= rows; id++) lines.push(`${id},${line.repeat(10)}`);
  return new File([lines.join("\n") + "\n"], "trips.csv", { type: "text/csv" });
}

function order(table, size) {
  return { destination: { table }, file: { name: "trips.csv", content_type: "text/csv", size } };
}

/** Whatever a page can see of an answer. */
async function seen(answer) {
  try {
    const response = await answer;
    return { status: response.status, body: (await response.text()).slice(0, 2000) };
  } catch (error) {
    return { error: error.name };
  }
}

const scenarios = {
  /** The page itself, as a person would use it. */
  async page() {
    const form = document.querySelector("form");
    const chosen = new DataTransfer();
    chosen.items.add(file(100));
    form.elements.file.files = chosen.files;
    form.elements.table.value = "by_page";
    const state = document.querySelector("#state");
    const ended = new Promise((resolve) => {
      const look = () => /^(succeeded: .* loaded|failed: [^0-9])/.test(state.textContent) && resolve();
      new MutationObserver(look).observe(state, { childList: true, characterData: true, subtree: true });
    });
    form.requestSubmit();
    await ended;
    return { state: state.textContent, progress: document.querySelector("#progress").value };
  },

  /** An upload with `XMLHttpRequest`, and its progress. */
  async xhr() {
    const big = file(16_000);
    const progress = [];
    const states = [];
    const done = await importFile(api, big, "by_xhr", {
      onProgress: (bytes, total) => progress.push([bytes, total]),
      onChange: (current) => states.push(current.state),
    });
    return { size: big.size, progress, states, done };
  },

  /** An upload with `fetch`; before it one of another type, behind it one more. */
  async fetch() {
    const small = file(100);
    const response = await fetch(`${api}/v1/imports`, {
      method: "POST",
      headers: { "content-type": "application/json", accept: "application/json", "idempotency-key": crypto.randomUUID() },
      body: JSON.stringify(order("by_fetch", small.size)),
    });
    const location = response.headers.get("location");
    const created = await response.json();
    const { method, url, headers } = created.upload;
    const signed = Object.fromEntries(headersToSend(headers));
    const put = (more) => seen(fetch(url, { method, headers: { ...signed, ...more }, body: small }));
    const wrong = await put({ "content-type": "text/plain" });
    const right = await put({});
    const again = await put({});
    await complete(api, created.id);
    const done = await follow(api, created.id);
    // `if-none-match` and `last-event-id` need a preflight of their own.
    const conditional = await seen(fetch(`${api}/v1/imports/${created.id}`, { headers: { "if-none-match": '"x"', "last-event-id": "1" } }));
    const unknown = await seen(fetch(`${api}/v1/imports/${crypto.randomUUID()}`));
    const malformed = await seen(fetch(`${api}/v1/imports`, { method: "POST", headers: { "content-type": "application/json" }, body: "{}" }));
    return { location, wrong, right, again, done, conditional: conditional.status, unknown, malformed };
  },

  /** What a page of an origin that is not allowed gets: no answer. */
  async stranger() {
    const created = JSON.parse(asked.get("created"));
    const refused = async (work) => {
      try {
        return { answered: await work };
      } catch (error) {
        return { refused: error instanceof Refused, status: error.status };
      }
    };
    return {
      create: await refused(createImport(api, order("by_stranger", 1))),
      read: await seen(fetch(`${api}/v1/imports`)),
      upload: await refused(upload(created.upload, file(1))),
    };
  },
};

try {
  const report = await scenarios[asked.get("scenario")]();
  await fetch("/report", { method: "POST", body: JSON.stringify(report) });
} catch (error) {
  await fetch("/report", { method: "POST", body: JSON.stringify({ thrown: `${error} ${error.stack}` }) });
}
