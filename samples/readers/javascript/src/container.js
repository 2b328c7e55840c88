// An open archive: its tail, its manifests, and members by ranges. Section "Reading", steps 1 to 5.
import { closeSync, fstatSync, openSync, readSync } from 'node:fs'
import { Broken } from './findings.js'
import { MAX_FRAME_BYTES, contentOf, indexContentOf } from './frames.js'
import { byCodePoints, hexOf, isObject, parseJson, textOf } from './json.js'
import { checkPath, checkTogether } from './paths.js'

const FORMAT = 'mlflow-exim-archive'
const MAGIC = { index: 0x184D2A5B, footer: 0x184D2A5C, table: 0x184D2A5E, tableEnd: 0x8F92EAB1 }
const TABLE_END_BYTES = 9
const ENTRY_BYTES = 12
const MOST = { frames: 2 ** 24, footerBytes: 64 << 10, manifestBytes: 512 << 20, number: 2n ** 63n - 1n }
const TAIL = { share: 400, least: 128 << 10, most: 4 << 20 }
const TAG_MANIFEST = 'tagmanifest-sha256.txt'
const MANIFEST = 'manifest-sha256.txt'

/** A file that is read by ranges; what was read of its end is kept. */
class RangedFile {
  constructor (path) {
    this.descriptor = openSync(path)
    this.size = fstatSync(this.descriptor).size
    this.tail = this.fetch(this.size - this.tailBytes(), this.size)
  }

  tailBytes () {
    return Math.min(this.size, Math.max(TAIL.least, Math.min(TAIL.most, Math.ceil(this.size / TAIL.share))))
  }

  read (start, end) {
    const from = start - (this.size - this.tail.length)
    return from >= 0 ? this.tail.subarray(from, from + end - start) : this.fetch(start, end)
  }

  fetch (start, end) {
    const bytes = Buffer.alloc(end - start)
    for (let done = 0; done < bytes.length;) {
      const count = readSync(this.descriptor, bytes, done, bytes.length - done, start + done)
      if (!count) throw new Error('the file ends early')
      done += count
    }
    return bytes
  }
}

export class Archive {
  /** Opens an archive; throws the first rule that its tail or manifests break. */
  static open (path) {
    const archive = new Archive(path)
    try {
      archive.readSeekTable()
      archive.readFooter()
      archive.readIndex()
      archive.readManifests()
      return archive
    } catch (error) {
      archive.close()
      throw error
    }
  }

  constructor (path) {
    this.file = new RangedFile(path)
  }

  close () {
    closeSync(this.file.descriptor)
  }

  readSeekTable () {
    const fail = (code, message) => { throw new Broken(code, '<seek table>', message) }
    const { file } = this
    const least = 8 + TABLE_END_BYTES
    const end = file.size < least ? null : file.read(file.size - TABLE_END_BYTES, file.size)
    if (end?.readUInt32LE(5) !== MAGIC.tableEnd) fail('E010', 'is not at the end of the file')
    const count = end.readUInt32LE(0)
    const start = file.size - least - ENTRY_BYTES * count
    if ((end[4] & 0xFC) !== 0x80 || count > MOST.frames || start < 0) fail('E011', 'has other flags or a wrong size')
    const table = skippable(file.read(start, file.size), MAGIC.table)
    if (!table) fail('E011', 'has another magic or size')
    let offset = 0
    let tarOffset = 0
    const entries = []
    for (let n = 0; n < count; n++) {
      const at = n * ENTRY_BYTES
      const [stored, size] = [table.readUInt32LE(at), table.readUInt32LE(at + 4)]
      entries.push({ offset, stored, size, tarOffset, checksum: table.readUInt32LE(at + 8) })
      offset += stored
      tarOffset += size
    }
    if (offset !== start) fail('E012', 'lists other sizes than there are bytes')
    if (entries.some(entry => entry.size > MAX_FRAME_BYTES)) fail('E013', 'lists a frame of over 64 MiB')
    this.frames = entries.slice(0, -2)
    this.skippables = entries.slice(-2)
    const isRight = this.frames.every(frame => frame.size) && !this.skippables.some(frame => frame.size)
    if (!this.frames.length || !isRight) fail('E014', 'must list frames with content, then index and footer')
    this.tarBytes = tarOffset
  }

  bytesOfFrame ({ offset, stored }) {
    return this.file.read(offset, offset + stored)
  }

  readFooter () {
    const fail = (code, message) => { throw new Broken(code, '<footer>', message) }
    const frame = this.skippables[1]
    if (frame.stored > MOST.footerBytes) fail('E017', 'is too large')
    const bytes = skippable(this.bytesOfFrame(frame), MAGIC.footer)
    if (!bytes) fail('E017', 'has another magic or size')
    const footer = parseJson(bytes, '<footer>', { code: 'E017', isFooter: true })
    if (!isObject(footer)) fail('E017', 'is no object')
    const isCount = value => typeof value === 'bigint' && value >= 0n && value <= MOST.number
    const isDigest = value => typeof value === 'string' && /^[0-9a-f]{64}$/.test(value)
    const { version, required_features: features, index, base_directory: base } = footer
    if (footer.format !== FORMAT) fail('E018', `has the format ${footer.format}`)
    if (!Array.isArray(version) || version.length !== 2 || !version.every(isCount)) fail('E017', 'has a wrong version')
    if (version[0] !== 1n) fail('E019', `has version ${version.join('.')}`)
    if (!Array.isArray(features) || !features.every(name => typeof name === 'string')) fail('E017', 'has wrong features')
    if (features.length) fail('E020', `asks for ${features}`)
    if (footer.algorithm !== 'sha256') fail('E021', `has the algorithm ${footer.algorithm}`)
    const isWhole = isObject(index) && isDigest(footer.root) && typeof base === 'string' &&
      isCount(footer.members) && isCount(footer.tar_bytes) && isDigest(index.sha256) &&
      [index.offset, index.compressed_bytes, index.bytes].every(isCount) &&
      (!('open_offset' in footer) || isCount(footer.open_offset))
    if (!isWhole) fail('E017', 'lacks a key, or one has another type')
    try {
      checkPath(base)
    } catch (error) {
      fail('E022', error.message)
    }
    if (base.includes('/')) fail('E022', 'base_directory has two segments')
    if (footer.tar_bytes !== BigInt(this.tarBytes)) fail('E023', `says ${footer.tar_bytes} bytes of tar`)
    this.footer = footer
    this.minor = version[1]
  }

  readIndex () {
    const fail = message => { throw new Broken('E025', '<index>', message) }
    const frame = this.skippables[0]
    const wanted = this.footer.index
    if (wanted.offset !== BigInt(frame.offset + 8) || wanted.compressed_bytes !== BigInt(frame.stored - 8)) {
      fail('is not where the footer says')
    }
    const packed = skippable(this.bytesOfFrame(frame), MAGIC.index)
    if (!packed || hexOf(packed) !== wanted.sha256) fail('has another magic or digest')
    const bytes = indexContentOf(packed, Number(wanted.bytes))
    if (!bytes || bytes.length < 16) fail('does not decompress to its size')
    const tags = Number(bytes.readBigUInt64LE(0))
    const rows = tags + Number(bytes.readBigUInt64LE(8))
    if (!tags || bytes.length !== 16 + 16 * rows) fail('has another number of rows')
    if (BigInt(rows) !== this.footer.members) throw new Broken('E024', '<footer>', `there are ${rows} members`)
    this.tagCount = tags
    this.rows = Array.from({ length: rows }, (_, n) => ({
      offset: Number(bytes.readBigUInt64LE(16 + 8 * n)), size: Number(bytes.readBigUInt64LE(16 + 8 * (rows + n)))
    }))
  }

  readManifests () {
    const root = this.readManifest(TAG_MANIFEST, this.tagCount - 1, this.tagCount, this.footer.root, 'E027')
    for (const { path } of root) {
      if (path === 'fetch.txt') throw new Broken('E034', path, 'the bag is not whole')
      if (path === TAG_MANIFEST || isBelowData(path)) throw new Broken('E030', path, 'is no tag file')
    }
    if (root.length !== this.tagCount - 1) throw new Broken('E024', TAG_MANIFEST, 'has another number of lines')
    const row = root.findIndex(({ path }) => path === MANIFEST)
    if (row < 0) throw new Broken('E030', MANIFEST, 'is not in the tag manifest')
    const payload = this.readManifest(MANIFEST, row, this.rows.length - this.tagCount, root[row].digest, 'E029')
    for (const { path } of payload) {
      if (!path.startsWith('data/')) throw new Broken('E030', path, 'is no payload')
    }
    if (payload.length !== this.rows.length - this.tagCount) throw new Broken('E024', MANIFEST, 'has other lines')
    const own = { path: TAG_MANIFEST, digest: this.footer.root }
    const members = [...root, own, ...payload].map((member, n) => ({ ...member, ...this.rows[n] }))
    checkTogether(members.map(member => member.path).sort(byCodePoints))
    this.members = new Map(members.map(member => [member.path, member]))
  }

  readManifest (name, row, lines, digest, code) {
    const { offset, size } = this.rows[row]
    const isPossible = offset + size <= this.tarBytes && size <= MOST.manifestBytes && size <= 8192 * Math.max(lines, 1)
    if (!isPossible) throw new Broken('E026', name, 'has an impossible place')
    const bytes = this.range(offset, size)
    if (hexOf(bytes) !== digest) throw new Broken(code, name, 'has another digest')
    return manifestLines(bytes, name)
  }

  /** Bytes of the tar stream, from the fewest frames, fetched as one range. */
  range (offset, size) {
    if (!size) return Buffer.alloc(0)
    const first = this.frameAt(offset)
    const last = this.frameAt(offset + size - 1)
    const frames = this.frames.slice(first, last + 1)
    const { offset: start } = frames[0]
    const packed = this.file.read(start, frames.at(-1).offset + frames.at(-1).stored)
    const pieces = frames.map((frame, n) =>
      contentOf(packed.subarray(frame.offset - start, frame.offset - start + frame.stored), frame, `<frame ${first + n}>`))
    const from = offset - frames[0].tarOffset
    return Buffer.concat(pieces).subarray(from, from + size)
  }

  frameAt (offset) {
    let [low, high] = [0, this.frames.length - 1]
    while (low < high) {
      const middle = (low + high + 1) >> 1
      if (this.frames[middle].tarOffset <= offset) low = middle
      else high = middle - 1
    }
    return low
  }

  /** How many bytes of the file hold a member, and what shares its frames. */
  storedBytes (path) {
    const { offset, size } = this.members.get(path)
    const last = this.frames[this.frameAt(offset + Math.max(size - 1, 0))]
    return last.offset + last.stored - this.frames[this.frameAt(offset)].offset
  }

  /** A member's bytes, which have the digest of its manifest. */
  read (path) {
    const { offset, size, digest } = this.members.get(path)
    if (offset + size > this.tarBytes) throw new Broken('E026', path, 'lies behind the end')
    const bytes = this.range(offset, size)
    if (hexOf(bytes) !== digest) throw new Broken('E029', path, 'has another digest')
    return bytes
  }
}

const isBelowData = path => path.toLowerCase().startsWith('data/')

/** What a skippable frame holds, null when it is none with this magic. */
function skippable (frame, magic) {
  const isOne = frame.length >= 8 && frame.readUInt32LE(0) === magic && frame.readUInt32LE(4) === frame.length - 8
  return isOne ? frame.subarray(8) : null
}

function manifestLines (bytes, name) {
  const fail = message => { throw new Broken('E028', name, message) }
  const text = textOf(bytes, 'E009', name)
  if (text !== '' && !text.endsWith('\n')) fail('its last line does not end')
  const lines = text.split('\n').slice(0, -1).map(line => {
    const found = /^([0-9a-f]{64}) {2}([^]*)$/.exec(line)
    if (!found) fail('a line is no digest, two spaces and a path')
    return { digest: found[1], path: found[2] }
  })
  for (let n = 1; n < lines.length; n++) {
    if (byCodePoints(lines[n - 1].path, lines[n].path) >= 0) fail('its lines are not in order')
  }
  lines.forEach(line => checkPath(line.path))
  return lines
}
