#!/usr/bin/env node
// Compares the vectors in a folder with what this reader makes of the same: prints what differs.
import { readFileSync } from 'node:fs'
import { canonical, contentDigest, contentsOf, digestOf, metricsDigest, parseJson } from './json.js'
import { decodeSegment, escapePath, escapeSegment } from './paths.js'
import { objectOf } from './tables.js'

const folder = process.argv[2]
const vectorsOf = name => parseJson(readFileSync(`${folder}/${name}.json`), name)
let compared = 0

function compare (what, found, wanted) {
  compared++
  if (found === wanted) return
  console.log(`${what}: ${found} in place of ${wanted}`)
  process.exitCode = 1
}

// A lone surrogate stands in base64 as the three bytes that it would have.
function nameOf ({ name, utf8_base64: base64 }) {
  if (name !== null) return name
  const bytes = Buffer.from(base64, 'base64')
  return String.fromCharCode((bytes[0] & 15) << 12 | (bytes[1] & 63) << 6 | bytes[2] & 63)
}

const { segments, paths } = vectorsOf('paths')
for (const vector of segments) {
  const name = nameOf(vector)
  compare(`segment of ${name}`, escapeSegment(name), vector.segment)
  compare(`name of ${vector.segment}`, decodeSegment(vector.segment) === name, vector.decodable)
}
for (const { path, member } of paths) compare(`member of ${path}`, escapePath(path), member)

for (const { text, canonical: wanted, content_digest: digest } of vectorsOf('canonical')) {
  const value = parseJson(Buffer.from(text), 'text')
  compare(text, canonical(value), wanted)
  compare(text, contentDigest(value), digest)
}
for (const { mlflow, metrics, artifacts, content_digest: digest } of vectorsOf('content_digests')) {
  const entries = artifacts.map(([path, size, sha256]) => ({ path, size_bytes: size, sha256 }))
  compare('content digest', contentDigest(mlflow, { metrics, artifacts: entries }), digest)
}
for (const { rows, digest } of vectorsOf('metrics_digests')) {
  const parsed = rows.map(([key, step, timestamp, bits]) => ({ key, step, timestamp, bits: BigInt(`0x${bits}`) }))
  compare('metrics digest', metricsDigest(parsed), digest)
}
for (const { trace, spans, assessments, attachments, content_digest: digest } of vectorsOf('trace_digests')) {
  const objectOfRow = (row, table) => objectOf(withMaps(row), table, 'vector')
  const body = {
    info: objectOfRow(trace, 'traces'),
    assessments: assessments.map(row => objectOfRow(row, 'assessments')),
    spans: trace.spans === null ? null : spans.map(row => objectOfRow(row, 'spans'))
  }
  const id = trace.trace_id
  for (const span of body.spans ?? []) if (id.startsWith('tr-')) span.otel_trace_id ??= id.slice(3)
  if (attachments.length) body.attachments = contentsOf(attachments)
  compare(`digest of ${id}`, digestOf(body), digest)
}
console.log(`${compared} compared`)

// A map is a list of pairs in the vectors.
function withMaps (row) {
  return Object.fromEntries(Object.entries(row).map(([column, value]) =>
    [column, Array.isArray(value) ? Object.fromEntries(value) : value]))
}
