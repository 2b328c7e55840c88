// The tar stream, read strictly, as other tools see it. Section "Tar stream".
import { Broken } from './findings.js'
import { textOf } from './json.js'

export const BLOCK_BYTES = 512
const PLACE = '<tar stream>'
const MAX_PAX_BYTES = 8192
const LARGE_BYTES = 8 ** 11
const FIELDS = {
  name: [0, 100], mode: [100, 108], uid: [108, 116], gid: [116, 124], size: [124, 136], mtime: [136, 148],
  checksum: [148, 156], magic: [257, 265], linkName: [157, 257], owners: [265, 329], prefix: [345, 500]
}
const METADATA = { mode: 0o644, uid: 0, gid: 0, mtime: 0 }

const fail = message => { throw new Broken('E035', PLACE, message) }
export const paddingOf = size => -size & (BLOCK_BYTES - 1)
const isZero = bytes => bytes.every(byte => byte === 0)
const fieldOf = (block, name) => block.subarray(...FIELDS[name])

/** Reads the header of the next member at `at`; null at a zero block. */
export function readHeader (tar, at) {
  let block = blockAt(tar, at, 'E039')
  if (isZero(block)) return null
  checkBlock(block)
  let records = null
  if (block[156] === 0x78) { // x
    const size = octal(fieldOf(block, 'size'))
    if (size > MAX_PAX_BYTES) fail('has a large pax header')
    const start = at + BLOCK_BYTES
    const end = start + size + paddingOf(size)
    if (end > tar.length || !isZero(tar.subarray(start + size, end))) fail('has a pax header with a wrong end')
    records = paxRecords(tar.subarray(start, start + size))
    at = end
    block = blockAt(tar, at, 'E035')
    checkBlock(block)
  }
  const type = String.fromCharCode(block[156])
  if (type !== '0' && type !== '1') throw new Broken('E036', PLACE, `has a member of type ${type}`)
  const name = records?.get('path') ?? nameOf(block)
  const linkName = records?.get('linkpath') ?? stringOf(fieldOf(block, 'linkName'))
  const size = records?.has('size') ? sizeOf(records.get('size')) : octal(fieldOf(block, 'size'))
  const isLink = type === '1'
  if (isLink !== linkName.length > 0 || (isLink && size)) fail('has a link without target or with data')
  return {
    name: textOf(name, 'E009', PLACE),
    linkName: textOf(linkName, 'E009', PLACE),
    size,
    dataAt: at + BLOCK_BYTES,
    isOdd: isOdd(block, records)
  }
}

function blockAt (tar, at, code) {
  if (at === tar.length) throw new Broken(code, PLACE, 'ends without two zero blocks')
  if (at + BLOCK_BYTES > tar.length) fail('ends within a header')
  return tar.subarray(at, at + BLOCK_BYTES)
}

function checkBlock (block) {
  const [start, end] = FIELDS.checksum
  const sum = block.reduce((total, byte, n) => total + (n >= start && n < end ? 0x20 : byte), 0)
  if (octal(fieldOf(block, 'checksum')) !== sum) fail('has a header with a wrong checksum')
  if (fieldOf(block, 'magic').toString('latin1') !== 'ustar\x0000') fail('has a header that is not ustar')
}

function octal (field) {
  const found = octalOrNull(field)
  return found ?? fail('has a number that is not octal')
}

function octalOrNull (field) {
  const found = /^ *([0-7]+)[ \0]+$/.exec(field.toString('latin1'))
  return found && parseInt(found[1], 8)
}

function stringOf (field) {
  const end = field.indexOf(0)
  if (end < 0) return field
  if (!isZero(field.subarray(end))) fail('has bytes behind the end of a name')
  return field.subarray(0, end)
}

function nameOf (block) {
  const [name, prefix] = [stringOf(fieldOf(block, 'name')), stringOf(fieldOf(block, 'prefix'))]
  return prefix.length ? Buffer.concat([prefix, Buffer.from('/'), name]) : name
}

function sizeOf (record) {
  const text = record.toString('latin1')
  if (!/^(?:0|[1-9][0-9]{0,18})$/.test(text)) fail('has a pax size that is no number')
  return Number(text)
}

function paxRecords (bytes) {
  const records = new Map()
  for (let at = 0; at < bytes.length;) {
    const found = /^([1-9][0-9]{0,4}) (path|linkpath|size)=/.exec(bytes.subarray(at, at + 20).toString('latin1'))
    if (!found) fail('has a pax record of another name')
    const end = at + Number(found[1])
    const start = at + found[0].length
    const value = bytes.subarray(start, end - 1)
    if (end > bytes.length || end <= start || bytes[end - 1] !== 0x0a) fail('has a pax record of a wrong length')
    if (records.has(found[2]) || !value.length || value.includes(0)) fail('has a pax record twice, empty or with a NUL')
    records.set(found[2], value)
    at = end
  }
  return records
}

// Whether a header says what it should not, W001.
function isOdd (block, records) {
  const isPlain = Object.entries(METADATA).every(([name, wanted]) => octalOrNull(fieldOf(block, name)) === wanted)
  if (!isPlain || !isZero(fieldOf(block, 'owners')) || records?.size === 0) return true
  return [...records ?? []].some(([name, value]) => name === 'size'
    ? sizeOf(value) < LARGE_BYTES
    : value.length <= 100 && value.every(byte => byte < 0x80))
}
