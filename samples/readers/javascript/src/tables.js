// Parquet tables: their columns, their limits, and the objects that rows of traces stand for.
// tables.md; sections "Metric histories", "Traces", "Hostile input".
import { parquetMetadata, parquetReadObjects, parquetSchema } from 'hyparquet'
import { compressors } from 'hyparquet-compressors'
import { Broken } from './findings.js'
import { byCodePoints, isObject, parseJson, textOf } from './json.js'
import { specFile } from './paths.js'

const MOST = { rows: 1_048_576n, bytes: 512 << 20, free: 64 << 20, expansion: 1000 }
const MISSING_IN_OBJECT = { traces: ['spans', 'assessments', 'content_digest'], spans: ['trace_id'], assessments: ['trace_id'] }
const JSON_COLUMNS = {
  traces: { extra: 'object' },
  spans: { attributes: 'object', events: 'list', links: 'list', extra: 'object' },
  assessments: { source: 'object', feedback: 'object', expectation: 'object', issue: 'object', extra: 'object' }
}

/** Columns of each table as tables.md lists them: "name type", with "!" where null is not allowed. */
const COLUMNS = Object.fromEntries(specFile('tables.md').split(/^## /m).slice(1).map(section => {
  const name = /^(?:metrics|traces)\/([a-z]+)-NNNNN/.exec(section)?.[1]
  const rows = [...section.matchAll(/^\| \d+ \| `(\w+)` \| ([^|]+) \| (yes|no) \|/gm)]
  return [name === 'part' ? 'metrics' : name, rows.map(([, column, type, mayBeNull]) =>
    `${column} ${type}${mayBeNull === 'no' ? '!' : ''}`)]
}))

/**
 * The rows of a Parquet file, each an object of its columns; `bits` of a metric's value beside it.
 * @param {Buffer} bytes the file
 * @param {string} table metrics, traces, spans or assessments
 * @param {number} storedBytes how many bytes of the archive hold it
 */
export async function rowsOf (bytes, table, storedBytes, place) {
  const code = table === 'metrics' ? 'E059' : 'E062'
  const fail = (message, other = code) => { throw new Broken(other, place, message) }
  const file = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length)
  const guarded = async step => {
    try {
      return await step()
    } catch (error) {
      if (error instanceof Broken) throw error
      return fail(`is no Parquet that can be read: ${error.message}`)
    }
  }
  const metadata = await guarded(() => parquetMetadata(file))
  const columns = parquetSchema(metadata).children.map(columnOf)
  if (columns.join() !== COLUMNS[table].join()) fail(`has the columns ${columns}`)
  if (metadata.row_groups.some(group => group.num_rows > MOST.rows)) fail('has a row group of too many rows')
  // A value is read as 64-bit integer: JavaScript may change a signalling NaN as soon as it is a number.
  for (const element of metadata.schema) if (element.type === 'DOUBLE') element.type = 'INT64'
  for (const group of metadata.row_groups) {
    for (const { meta_data: column } of group.columns) if (column.type === 'DOUBLE') column.type = 'INT64'
  }
  const rows = []
  const parsers = { stringFromBytes: text => text && textOf(text, code, place) }
  for (let start = 0, n = 0; n < metadata.row_groups.length; n++) {
    const end = start + Number(metadata.row_groups[n].num_rows)
    const group = await guarded(() => parquetReadObjects(
      { file, metadata, compressors, parsers, rowStart: start, rowEnd: end }))
    const size = group.reduce((total, row) => total + sizeOf(row), 0)
    if (size > MOST.bytes) fail('has a row group of too many bytes')
    if (size > MOST.free && size > MOST.expansion * storedBytes) fail(`makes ${size} bytes of few`, 'E065')
    for (const row of group) rows.push(row)
    start = end
  }
  return rows.map(row => table === 'metrics' ? { ...row, bits: BigInt.asUintN(64, row.value) } : row)
}

function columnOf ({ element, children }) {
  const { name, type, converted_type: converted, logical_type: logical, repetition_type: repetition } = element
  let kind = 'other'
  if (children.length) kind = converted === 'MAP' || logical?.type === 'MAP' ? 'map<string, string>' : kind
  else if (type === 'BYTE_ARRAY' && (converted === 'UTF8' || logical?.type === 'STRING')) kind = 'string'
  else if (type === 'INT64' && (!logical || (logical.isSigned && logical.bitWidth === 64))) kind = 'int64'
  else if (type === 'DOUBLE') kind = 'double'
  else if (type === 'BOOLEAN') kind = 'bool'
  return `${name} ${kind}${repetition === 'REQUIRED' ? '!' : ''}`
}

function sizeOf (value) {
  if (typeof value === 'string') return 4 + Buffer.byteLength(value)
  if (typeof value === 'bigint') return 8
  return isObject(value)
    ? Object.entries(value).reduce((total, [key, inner]) => total + sizeOf(inner) + (isObject(inner) ? key.length : 0), 0)
    : 1
}

/** Whether rows are sorted by `run_id`, `key`, `step`, `timestamp` and the bits of the value. */
export function isSorted (rows) {
  const order = (a, b) => a < b ? -1 : a > b ? 1 : 0
  return rows.every((row, n) => n === 0 || (
    byCodePoints(rows[n - 1].run_id, row.run_id) || byCodePoints(rows[n - 1].key, row.key) ||
    order(rows[n - 1].step, row.step) || order(rows[n - 1].timestamp, row.timestamp) ||
    order(rows[n - 1].bits, row.bits)) <= 0)
}

const isEmpty = value => value === null || value === undefined ||
  (typeof value === 'object' && Object.keys(value).length === 0)

/** The object that a row of traces, spans or assessments stands for. */
export function objectOf (row, table, place) {
  let made = Object.create(null)
  for (const [column, value] of Object.entries(row)) {
    if (isEmpty(value) && typeof value !== 'string') continue
    if (MISSING_IN_OBJECT[table].includes(column)) continue
    const kind = JSON_COLUMNS[table][column]
    made[column] = kind ? jsonOf(value, kind, place, column) : isObject(value) ? asObject(value) : value
  }
  const { extra } = made
  delete made.extra
  made = Object.assign(made, extra)
  for (const name of Object.keys(made)) if (isEmpty(made[name])) delete made[name]
  return made
}

const asObject = map => Object.assign(Object.create(null), map)

function jsonOf (text, kind, place, column) {
  const value = parseJson(Buffer.from(text), place)
  const isRight = kind === 'list' ? Array.isArray(value) && value.every(isObject) : isObject(value)
  if (!isRight) throw new Broken('E063', place, `column ${column} holds no JSON ${kind}`)
  return value
}
