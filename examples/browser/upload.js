// Imports a file from a web page: asks longshore for an import, uploads the file straight to the object storage, and follows
// the import to its end. No library, nothing to build. The service has to allow the page's origin: LONGSHORE_CORS_ORIGINS.

/** Why something was refused. `status` is the HTTP status, or 0 where the browser got no answer that it may show. */
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/**
 * Imports `file` into `table`, and answers with the import at its end: look at its `state`.
 * `onProgress(bytes, total)` hears of the upload, `onChange(import)` of every look at the import.
 */
export async function importFile(api, file, table, { onProgress = () => {}, onChange = () => {} } = {}) {
  const created = await createImport(api, {
    destination: { table },
    // A file's name and size are optional; the storage refuses an upload of another size.
    file: { name: file.name, content_type: "text/csv", size: file.size },
  });
  await upload(created.upload, file, onProgress);
  await complete(api, created.id);
  return follow(api, created.id, onChange);
}

/** `POST /v1/imports`: an import and its presigned URL. */
export function createImport(api, request) {
  return call(`${api}/v1/imports`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(request),
  });
}

/** Uploads with progress. `fetch` would do, but tells of no progress. */
export function upload({ method, url, headers }, file, onProgress = () => {}) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open(method, url);
    for (const [name, value] of headersToSend(headers)) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => onProgress(event.loaded, event.total);
    request.onload = () => {
      // 412: the file is there, from an earlier try whose answer was lost.
      if (request.status === 200 || request.status === 412) resolve();
      else reject(new Refused(`the storage refused the upload (${request.status})`, request.status));
    };
    request.onerror = () => reject(new Refused("the storage cannot be reached, or does not allow this page", 0));
    request.send(file);
  });
}

/** The headers that were signed, but the length: browsers set that themselves, and let no page do it. */
export function headersToSend(headers) {
  return Object.entries(headers).filter(([name]) => name !== "content-length");
}

/** Says that the file is there. Needed only where the storage tells of no uploads, and harmless everywhere. */
export function complete(api, id) {
  return call(`${api}/v1/imports/${id}/complete`, { method: "POST" });
}

/** Looks at the import until it is done. */
export async function follow(api, id, onChange = () => {}) {
  let etag = null;
  let last = null;
  while (true) {
    const response = await request(`${api}/v1/imports/${id}`, etag ? { headers: { "if-none-match": etag } } : {});
    if (response.status !== 304) {
      last = await read(response);
      etag = response.headers.get("etag");
      onChange(last);
      if (last.done) return last;
    }
    const seconds = Number(response.headers.get("retry-after")) || 0.5;
    await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
  }
}

async function call(url, options) {
  return read(await request(url, options));
}

async function request(url, options) {
  try {
    return await fetch(url, options);
  } catch {
    throw new Refused("the service cannot be reached, or does not allow this page", 0);
  }
}

/** The JSON of an answer. Errors are problems (RFC 9457): their `detail` says what is wrong. */
async function read(response) {
  const body = await response.json();
  if (response.ok) return body;
  const errors = (body.errors ?? []).map(({ pointer, detail }) => `${pointer}: ${detail}`);
  throw new Refused([body.detail, ...errors].join("; "), response.status);
}
