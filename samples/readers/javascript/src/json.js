// JSON documents, their canonical form, and digests. Sections "JSON documents", "Content digests".
//
// A parsed document is made of null, booleans, texts, BigInt for integers, numbers for doubles,
// arrays, and objects without a prototype, so that any key is only a key.
import { createHash } from 'node:crypto'
import { Broken } from './findings.js'

const LIMITS = { bytes: 256 << 20, values: 4_194_304, levels: 100, digits: 4300 }
const ESCAPES = { '"': '"', '\\': '\\', '/': '/', b: '\b', f: '\f', n: '\n', r: '\r', t: '\t' }
const NUMBER = /-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?/y
const PLAIN = /[^"\\\u0000-\u001f]*/y
const WHITE = /[ \t\n\r]*/y
const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

/** The text of some bytes; `code` says which rule they break when they are no UTF-8. */
export function textOf (bytes, code, place) {
  try {
    return utf8.decode(bytes)
  } catch {
    throw new Broken(code, place, 'is not UTF-8')
  }
}

/** Parses one document; E050 when it is none, or another code for the footer. */
export function parseJson (bytes, place, { code = 'E050', isFooter = false } = {}) {
  const fail = message => { throw new Broken(code, place, message) }
  if (bytes.length > LIMITS.bytes) fail('is too long')
  const text = textOf(bytes, code, place)
  let at = 0
  let values = 0

  const take = pattern => {
    pattern.lastIndex = at
    const found = pattern.exec(text)
    at = pattern.lastIndex = found ? at + found[0].length : at
    return found
  }
  const expect = char => { if (text[at++] !== char) fail(`has no ${char} at ${at - 1}`) }

  function string () {
    expect('"')
    let made = ''
    for (;;) {
      made += take(PLAIN)[0]
      const char = text[at++]
      if (char === '"') break
      if (char !== '\\') fail('has an open text or a control character in one')
      const escape = text[at++]
      if (escape === 'u') {
        const hex = text.slice(at, at += 4)
        if (!/^[0-9a-fA-F]{4}$/.test(hex)) fail('has a wrong escape')
        made += String.fromCharCode(parseInt(hex, 16))
      } else if (escape in ESCAPES) made += ESCAPES[escape]
      else fail('has a wrong escape')
    }
    if (!isFooter && !made.isWellFormed()) fail('has a lone surrogate')
    return made
  }

  function number () {
    const found = take(NUMBER)
    if (!found) fail(`has no value at ${at}`)
    const [digits, fraction, exponent] = found
    if (fraction === undefined && exponent === undefined) {
      if (digits.replace('-', '').length > LIMITS.digits) fail('has an integer that is too long')
      return BigInt(digits)
    }
    const double = Number(digits)
    if (!Number.isFinite(double)) fail('has a number beyond a double')
    return double
  }

  function value (level) {
    if (++values > LIMITS.values) fail('has too many values')
    take(WHITE)
    const char = text[at]
    if (char === '"') return string()
    if (char === '{' || char === '[') {
      if (level > LIMITS.levels) fail('is nested too deep')
      at++
      return char === '{' ? members(level) : entries(level)
    }
    for (const [word, meaning] of [['true', true], ['false', false], ['null', null]]) {
      if (text.startsWith(word, at)) {
        at += word.length
        return meaning
      }
    }
    return number()
  }

  function entries (level) {
    const list = []
    for (take(WHITE); text[at] !== ']'; take(WHITE)) {
      if (list.length) expect(',')
      list.push(value(level + 1))
    }
    at++
    return list
  }

  function members (level) {
    const object = Object.create(null)
    let isFirst = true
    for (take(WHITE); text[at] !== '}'; take(WHITE)) {
      if (!isFirst) expect(',')
      isFirst = false
      take(WHITE)
      const key = string()
      if (key in object) fail(`has the key ${key} twice`)
      take(WHITE)
      expect(':')
      object[key] = value(level + 1)
    }
    at++
    return object
  }

  const document = value(1)
  take(WHITE)
  if (at < text.length) fail('goes on behind its end')
  return document
}

export const isObject = value => typeof value === 'object' && value !== null && !Array.isArray(value)

/** Orders texts by code points, as their UTF-8 does; JavaScript's own order is another. */
export const byCodePoints = (a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b))

/** The canonical form of a value, as text. */
export function canonical (value) {
  if (typeof value === 'string') return quoted(value)
  if (typeof value === 'number') return double(value)
  if (Array.isArray(value)) return `[${value.map(canonical).join()}]`
  if (!isObject(value)) return String(value) // null, a boolean, a BigInt
  const keys = Object.keys(value).sort(byCodePoints)
  return `{${keys.map(key => `${quoted(key)}:${canonical(value[key])}`).join()}}`
}

const SHORT = { '"': '\\"', '\\': '\\\\', '\b': '\\b', '\t': '\\t', '\n': '\\n', '\f': '\\f', '\r': '\\r' }

function quoted (text) {
  const escaped = text.replace(/["\\\u0000-\u001f]/g, char =>
    SHORT[char] ?? `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`)
  return `"${escaped}"`
}

function double (value) {
  if (value === 0) return Object.is(value, -0) ? '-0.0' : '0.0'
  // The shortest digits that read back, in scientific notation: -d.dddde-X
  const [, sign, first, more = '', exponent] = /^(-?)(\d)(?:\.(\d+))?e([+-]\d+)$/.exec(value.toExponential())
  const e = Number(exponent)
  const digits = first + more
  if (e < -4 || e > 15) {
    const size = String(Math.abs(e)).padStart(2, '0')
    return `${sign}${first}${more && `.${more}`}e${e < 0 ? '-' : '+'}${size}`
  }
  if (e < 0) return `${sign}0.${'0'.repeat(-e - 1)}${digits}`
  return `${sign}${digits.slice(0, e + 1).padEnd(e + 1, '0')}.${digits.slice(e + 1) || '0'}`
}

export const sha256 = data => createHash('sha256').update(data).digest()
export const hexOf = data => sha256(data).toString('hex')

/** `sha256:` and the digest of a value's canonical form. */
export const digestOf = value => `sha256:${hexOf(canonical(value))}`

/** Artifacts or attachments as they are hashed. */
export const contentsOf = entries => entries
  .map(entry => [entry.path, entry.size_bytes, entry.sha256])
  .sort((a, b) => byCodePoints(a[0], b[0]))

/** Content digest of an object: its part `mlflow` and what the archive holds beside it. */
export function contentDigest (mlflow, { metrics, artifacts = [], traces = [] } = {}) {
  const body = { mlflow }
  if (metrics !== undefined && metrics !== null) body.metrics = metrics
  if (artifacts.length) body.artifacts = contentsOf(artifacts)
  if (traces.length) body.traces = traces
  return digestOf(body)
}

/** Metrics digest of a run's sorted rows: {key, step, timestamp, bits}, the last three BigInt. */
export function metricsDigest (rows) {
  const whole = createHash('sha256')
  for (let start = 0, stop; start < rows.length; start = stop) {
    const { key } = rows[start]
    for (stop = start; stop < rows.length && rows[stop].key === key;) stop++
    const name = Buffer.from(key)
    const head = Buffer.alloc(4)
    head.writeUInt32LE(name.length)
    whole.update(head).update(name).update(words([BigInt(stop - start)]))
    for (const column of ['step', 'timestamp', 'bits']) {
      whole.update(sha256(words(rows.slice(start, stop).map(row => row[column]))))
    }
  }
  return `sha256:${whole.digest('hex')}`
}

function words (integers) {
  const bytes = Buffer.alloc(8 * integers.length)
  integers.forEach((integer, n) => bytes.writeBigUInt64LE(BigInt.asUintN(64, integer), 8 * n))
  return bytes
}
