// One zstd frame of an archive. Section "Frames"; RFC 8878 for what a frame is.
import { decompress } from 'fzstd'
import xxhash from 'xxhash-wasm'
import { Broken } from './findings.js'

export const MAX_FRAME_BYTES = 64 << 20
const ZSTD_MAGIC = 0xFD2FB528
const LOW_32_BITS = 0xFFFFFFFFn
const { h64Raw } = await xxhash()

/** What a frame's header says, and where the frame ends; null when it is no frame. */
export function headerOf (bytes) {
  if (bytes.length < 6 || bytes.readUInt32LE(0) !== ZSTD_MAGIC) return null
  const descriptor = bytes[4]
  const isSingle = (descriptor & 0x20) !== 0
  const hasChecksum = (descriptor & 0x04) !== 0
  const dictionaryBytes = [0, 1, 2, 4][descriptor & 3]
  const sizeBytes = [isSingle ? 1 : 0, 2, 4, 8][descriptor >> 6]
  if (descriptor & 0x08) return null
  let at = 5
  let window = 0
  if (!isSingle) {
    const base = 2 ** (10 + (bytes[at] >> 3))
    window = base + base / 8 * (bytes[at++] & 7)
  }
  if (bytes.length < at + dictionaryBytes + sizeBytes) return null
  const dictionary = dictionaryBytes ? bytes.readUIntLE(at, dictionaryBytes) : 0
  at += dictionaryBytes
  let size = null
  if (sizeBytes === 8) size = Number(bytes.readBigUInt64LE(at))
  else if (sizeBytes) size = bytes.readUIntLE(at, sizeBytes) + (sizeBytes === 2 ? 256 : 0)
  at += sizeBytes
  return { size, window: isSingle ? size : window, hasChecksum, dictionary, end: endOf(bytes, at, hasChecksum) }
}

// Blocks say their sizes one after the other; only a walk over them tells where the frame ends.
function endOf (bytes, at, hasChecksum) {
  for (let isLast = false; !isLast;) {
    if (at + 3 > bytes.length) return Infinity
    const header = bytes.readUIntLE(at, 3)
    const isRepeated = (header >> 1 & 3) === 1
    isLast = (header & 1) === 1
    at += 3 + (isRepeated ? 1 : header >> 3)
  }
  return at + (hasChecksum ? 4 : 0)
}

/** The content of a frame that is all of `bytes`; `wanted` is its entry in the seek table. */
export function contentOf (bytes, wanted, place) {
  const header = headerOf(bytes)
  if (!header || header.size !== wanted.size || !header.hasChecksum || header.dictionary) {
    throw new Broken('E014', place, 'is no zstd frame with this size, a checksum and no dictionary')
  }
  if (header.window > MAX_FRAME_BYTES) throw new Broken('E013', place, 'needs a large window')
  if (header.end !== bytes.length) throw new Broken('E015', place, 'ends elsewhere')
  const content = plainOf(bytes, header.size)
  const checksum = bytes.readUInt32LE(bytes.length - 4)
  if (content === null || Number(h64Raw(content) & LOW_32_BITS) !== checksum) {
    throw new Broken('E015', place, 'does not decompress to its checksum')
  }
  if (checksum !== wanted.checksum) throw new Broken('E016', place, 'has another checksum in the table')
  return content
}

/** The content of the index's frame, or null when it is not as declared. */
export function indexContentOf (bytes, size) {
  const header = headerOf(bytes)
  const isSound = header && header.size === size && header.end === bytes.length
  return isSound && size <= MAX_FRAME_BYTES && header.window <= MAX_FRAME_BYTES ? plainOf(bytes, size) : null
}

function plainOf (bytes, size) {
  try {
    const content = decompress(bytes, new Uint8Array(size))
    return content.length === size ? Buffer.from(content.buffer, content.byteOffset, size) : null
  } catch {
    return null // fzstd's own errors are many
  }
}
