#!/usr/bin/env node
// Imports a CSV file through a longshore server, with nothing but Node (18 or later).
//
//     node import.mjs --table trips trips.csv
//     node import.mjs --server https://imports.example.com --table sales.trips --max-rejects 100 --rejects bad.csv trips.csv
//
// What it does is told in docs/api-javascript.md: create under an idempotency key, upload as a stream, follow by
// Server-Sent Events, list the rejects. Texts go to stderr, the finished import goes to stdout as one line of JSON. Exit codes
// are those of `longshore import`: 0 succeeded, 1 failed, 2 usage, 3 succeeded with rejects.

import { randomUUID } from 'node:crypto'
import { createReadStream, createWriteStream } from 'node:fs'
import { rename, stat } from 'node:fs/promises'
import { basename } from 'node:path'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'

const API_TIMEOUT = 30_000 // ms until the API has to answer
const SILENCE = 35_000 // ms without a byte on a stream of events, which has a heartbeat every 10 s
const PATIENCE = 300_000 // ms for which a server that is away is asked again
const UPLOAD_TRIES = 6
const AGAIN = new Set([408, 429, 502, 503, 504]) // answers of the moment: the same request may be sent again
const LISTED = 100 // rejects that are printed; the file of rejects has all of them

const say = (text) => process.stderr.write(`${text}\n`)
/** `fetch failed` alone says nothing. The URL is never part of it: a presigned one is a secret. */
const reason = (error) => error.cause?.code ?? error.cause?.message ?? error.message
/** `Retry-After` in ms; it may be a date, which is not worth reading. */
const retryAfter = (answer) => Number(answer.headers.get('retry-after')) * 1000 || undefined

/** A problem document (RFC 9457) as one text. */
async function problem(answer) {
  const text = await answer.text()
  try {
    const { detail, errors = [] } = JSON.parse(text)
    const faults = errors.map((fault) => `${fault.pointer}: ${fault.detail}`)
    // The detail tells of one fault by itself.
    return [`${answer.status}: ${detail}`, ...(faults.length > 1 ? faults : [])].join('\n  ')
  } catch {
    return `${answer.status}: ${text.slice(0, 200)}`
  }
}

/** What trying again does not change. */
class Refused extends Error {}

/** A server. Every call here may be sent again, so a server that is away only costs time. */
class Api {
  constructor(server) {
    this.server = server.replace(/\/+$/, '')
  }

  /** Calls until there is an answer that is not of the moment; `read` takes it within the same patience. */
  async call(method, path, { headers = {}, body, read = (answer) => answer.text(), signal } = {}) {
    const init = { method, headers: { ...headers, ...(body && { 'content-type': 'application/json' }) } }
    if (body) init.body = JSON.stringify(body)
    const began = Date.now()
    for (let pause = 500; ; pause = Math.min(pause * 2, 10_000)) {
      let why, wait
      try {
        const answer = await fetch(this.server + path, { ...init, signal: signal?.() ?? AbortSignal.timeout(API_TIMEOUT) })
        if (!AGAIN.has(answer.status)) return [answer, answer.ok ? await read(answer) : await problem(answer)]
        ;[why, wait] = [answer.status, retryAfter(answer)]
        await answer.body?.cancel()
      } catch (error) {
        why = reason(error)
      }
      if (Date.now() - began > PATIENCE) throw new Refused(`no answer from ${this.server}: ${why}`)
      wait ??= pause * (0.5 + Math.random() / 2)
      say(`${this.server} is away (${why}); trying again in ${(wait / 1000).toFixed(1)} s`)
      await sleep(wait)
    }
  }

  /** What a call answers that has to succeed. */
  async must(method, path, options) {
    const [answer, taken] = await this.call(method, path, options)
    if (!answer.ok) throw new Refused(taken)
    return taken
  }
}

const asJson = (answer) => answer.json()

/** The import and its presigned URL. The key makes a repeated call harmless, after a lost answer, too. */
function create(api, { file, table, maxRejects, key, size }) {
  const body = { destination: { table }, file: { name: basename(file), size }, on_error: { max_rejects: maxRejects } }
  return api.must('POST', '/v1/imports', { headers: { 'idempotency-key': key }, body, read: asJson })
}

/** One upload: the status, or undefined where the connection broke. */
async function put({ method, url, headers }, file, size) {
  try {
    // Exactly the headers that were signed. The length is among them, since it was declared; where nothing is sent, `fetch`
    // wants to say so itself.
    const { 'content-length': length, ...others } = headers
    const init = size > 0 ? { headers, body: Readable.toWeb(counted(file, size)), duplex: 'half' } : { headers: others }
    const answer = await fetch(url, { method, ...init })
    await answer.arrayBuffer()
    return answer.status
  } catch (error) {
    say(`the upload broke off: ${reason(error)}`)
    return undefined
  }
}

/** A file on its way up. */
function counted(file, size) {
  let sent = 0
  let told = Date.now()
  return createReadStream(file, { highWaterMark: 256 * 1024 }).on('data', (block) => {
    sent += block.length
    if (Date.now() - told > 2000) {
      told = Date.now()
      say(`uploading: ${Math.floor((100 * sent) / size)} %`)
    }
  })
}

/** Uploads until the storage has the file. */
async function upload(api, created, file, size) {
  let way = created.upload
  if (!way) return say('the file was uploaded before')
  for (let tried = 0; tried < UPLOAD_TRIES; tried++) {
    const status = await put(way, file, size)
    if ([200, 201, 204].includes(status)) return
    if (status === 412) return say('the file is there already') // an earlier try arrived, its answer did not
    if (status && status !== 403 && status < 500 && !AGAIN.has(status)) {
      throw new Refused(`the storage refused the upload: ${status}`)
    }
    await sleep(Math.min(2 ** tried, 30) * (200 + Math.random() * 300))
    if (status === 403 || Date.parse(way.expires_at) < Date.now()) {
      say('asking for a fresh URL')
      const [answer, fresh] = await api.call('POST', `/v1/imports/${created.id}/upload`, { read: asJson })
      if (answer.status === 409) return // it awaits no file any more
      if (!answer.ok) throw new Refused(fresh)
      way = fresh.upload
    }
  }
  throw new Refused(`the storage did not take the file in ${UPLOAD_TRIES} tries`)
}

/** The events of a stream (WHATWG HTML, section 9.2): `id`, `event`, `data` and `retry` of each. */
async function* events(body, alive) {
  const decoder = new TextDecoder()
  let text = ''
  for await (const block of body) {
    alive()
    text += decoder.decode(block, { stream: true })
    const whole = text.split(/\r?\n\r?\n/)
    text = whole.pop()
    for (const lines of whole) {
      const event = {}
      for (const line of lines.split(/\r?\n/)) {
        const [, field, value] = /^([^:]*):? ?(.*)$/.exec(line)
        if (field === 'data' && 'data' in event) event.data += `\n${value}`
        else if (field) event[field] = value // without a field it is a comment: the heartbeat
      }
      yield event
    }
  }
}

/** Follows the import until it is done. A stream that breaks is taken up again behind the last event that was seen. */
async function follow(api, id) {
  let current, lastId, silence, watch
  let pause = 1000
  const alive = () => {
    clearTimeout(watch)
    watch = setTimeout(() => silence.abort(new Error('the stream fell silent')), SILENCE)
  }
  // A stream has no end in time, but each of its bytes has.
  const signal = () => {
    silence = new AbortController()
    alive()
    return silence.signal
  }
  const read = (answer) => answer.body
  for (;;) {
    const headers = { accept: 'text/event-stream', ...(lastId && { 'last-event-id': lastId }) }
    try {
      const body = await api.must('GET', `/v1/imports/${id}/events`, { headers, read, signal })
      if (!body) return current // 204: it is done, and the last event was seen
      for await (const event of events(body, alive)) {
        lastId = event.id ?? lastId
        pause = Number(event.retry) || pause
        if (event.event !== 'import') continue
        current = JSON.parse(event.data)
        const { percent, rows_read: rows, rows_rejected: rejected } = current.progress
        say(`${current.state}: ${percent} %, ${rows} rows, ${rejected} rejected`)
        if (current.done) return current
      }
      say('the stream ended; taking it up again')
    } catch (error) {
      if (error instanceof Refused) throw error
      say(`the stream broke off (${reason(error)}); taking it up again`)
    } finally {
      clearTimeout(watch)
      silence.abort()
    }
    await sleep(pause)
  }
}

/** Prints the first rejects, page by page. */
async function listRejects(api, id) {
  let cursor = ''
  for (let listed = 0; listed < LISTED; ) {
    const page = await api.must('GET', `/v1/imports/${id}/rejects?limit=50${cursor}`, { read: asJson })
    for (const { row, line, reason, detail } of page.items) say(`row ${row} (line ${line}): ${reason} ${detail}`)
    listed += page.items.length
    if (page.next_cursor === null) return
    cursor = `&cursor=${encodeURIComponent(page.next_cursor)}`
  }
}

/** Downloads the file of rejects, beside its place first: a download that broke off leaves nothing there. */
async function saveRejects(api, id, path) {
  const part = `${path}.part`
  const read = (answer) => pipeline(Readable.fromWeb(answer.body), createWriteStream(part))
  await api.must('GET', `/v1/imports/${id}/rejects`, { headers: { accept: 'text/csv' }, read })
  await rename(part, path)
  say(`the rejected rows are in ${path}, to be mended and imported again`)
}

async function run(order) {
  const api = new Api(order.server)
  const created = await create(api, order)
  say(`import ${created.id}`)
  await upload(api, created, order.file, order.size)
  // Storages that send events need no such call, and it does no harm there.
  await api.call('POST', `/v1/imports/${created.id}/complete`)
  const done = await follow(api, created.id)
  const { rows_loaded: loaded, rows_rejected: rejected } = done.progress
  if (rejected > 0) {
    await listRejects(api, created.id)
    await saveRejects(api, created.id, order.rejects)
  }
  process.stdout.write(`${JSON.stringify(done)}\n`)
  if (done.state !== 'succeeded') {
    say(`${done.state}: ${done.error?.detail ?? 'no reason was given'}`)
    return 1
  }
  say(`${loaded} rows loaded, ${rejected} rejected`)
  return rejected > 0 ? 3 : 0
}

async function readArguments() {
  const text = { type: 'string' }
  const options = { table: text, server: text, 'max-rejects': text, key: text, rejects: text }
  const { values, positionals } = parseArgs({ options, allowPositionals: true })
  const [file, ...more] = positionals
  if (!file || more.length > 0 || !values.table) throw new Error('a file and --table are needed')
  const limit = values['max-rejects'] ?? '0'
  if (limit !== 'none' && !/^\d+$/.test(limit)) throw new Error("--max-rejects takes a number or 'none'")
  const info = await stat(file).catch(() => undefined)
  if (!info?.isFile()) throw new Error(`there is no file ${file}`)
  return {
    file,
    size: info.size,
    table: values.table,
    server: values.server ?? (process.env.LONGSHORE_SERVER || 'http://127.0.0.1:8080'),
    maxRejects: limit === 'none' ? null : Number(limit),
    key: values.key ?? randomUUID(), // the same key goes on with the same import
    rejects: values.rejects ?? `${file}.rejects.csv`,
  }
}

let order
try {
  order = await readArguments()
} catch (error) {
  say(`import.mjs: ${error.message}`)
  say('usage: import.mjs --table TABLE [--server URL] [--max-rejects N|none] [--key KEY] [--rejects FILE] FILE')
  process.exit(2)
}
try {
  process.exitCode = await run(order)
} catch (error) {
  say(`import.mjs: ${error.message}`)
  process.exitCode = 1
}
