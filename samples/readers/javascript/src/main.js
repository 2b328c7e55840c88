#!/usr/bin/env node
// exim-reader codes|contents|ls|cat ARCHIVE [MEMBER]; codes and contents also --stream.
import { createInterface } from 'node:readline'
import { Archive } from './container.js'
import { canonical } from './json.js'
import { verify } from './verify.js'

const USAGE = `usage: exim-reader verify ARCHIVE    what is wrong with it, a line each
       exim-reader codes ARCHIVE     the codes of what is wrong, one a line
       exim-reader codes --stream    the same for each path on standard input, a line each
       exim-reader contents ARCHIVE  all that it holds, as JSON (or --stream)
       exim-reader ls ARCHIVE        its members
       exim-reader cat ARCHIVE MEMBER`

async function codesOf (path) {
  const { findings } = await verify(path)
  return findings.codes
}

/** All that an archive holds, in a form that others can compare with theirs. */
async function contentsOf (path) {
  const { findings, archive, documents } = await verify(path)
  if (!documents) return canonical({ codes: findings.codes })
  const hex = bits => bits.toString(16).padStart(16, '0')
  return canonical({
    codes: findings.codes,
    root: archive.footer.root,
    content_root: documents.contentRoot(),
    members: Object.fromEntries([...archive.members.values()].map(of => [of.path, [BigInt(of.size), of.digest]])),
    documents: Object.fromEntries(documents.documents),
    histories: Object.fromEntries([...documents.tables].map(([table, rows]) =>
      [table, rows.map(row => [row.run_id, row.key, row.step, row.timestamp, hex(row.bits)])])),
    traces: documents.traces.map(({ info, assessments, spans }) => ({ info, assessments, spans }))
  })
}

async function stream (answer) {
  for await (const path of createInterface({ input: process.stdin })) console.log(await answer(path))
}

async function main ([command, path, member]) {
  const isStream = path === '--stream'
  if (command === 'codes' && isStream) return stream(async one => (await codesOf(one)).join(' '))
  if (command === 'contents' && isStream) return stream(contentsOf)
  if (!path) throw new Error(USAGE)
  if (command === 'codes') return (await codesOf(path)).forEach(code => console.log(code))
  if (command === 'contents') return console.log(await contentsOf(path))
  if (command === 'verify') {
    const { findings, archive } = await verify(path)
    findings.list.forEach(finding => console.log(finding.message))
    if (findings.codes.some(code => code[0] === 'E')) process.exitCode = 5
    else console.log(`Consistent; root ${archive.footer.root}. Nobody said which root to expect: authenticity not checked.`)
    return
  }
  const archive = Archive.open(path)
  if (command === 'ls') for (const of of archive.members.values()) console.log(`${of.digest}  ${of.size}  ${of.path}`)
  else if (command === 'cat' && archive.members.has(member)) process.stdout.write(archive.read(member))
  else throw new Error(USAGE)
}

try {
  await main(process.argv.slice(2))
} catch (error) {
  console.error(error.message)
  process.exitCode = 2
}
