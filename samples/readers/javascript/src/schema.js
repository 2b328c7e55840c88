// Documents against the schemas of the spec, as far as those go. Section "Envelopes".
import { Broken } from './findings.js'
import { isObject } from './json.js'
import { specFile } from './paths.js'

const schemas = new Map()

/** Throws E051 when a document has not the fields of its schema. */
export function checkSchema (document, name, place) {
  if (!schemas.has(name)) schemas.set(name, JSON.parse(specFile(`schema/${name}.schema.json`)))
  const schema = schemas.get(name)
  const problem = problemOf(document, schema, schema, '')
  if (problem) throw new Broken('E051', place, problem)
}

function problemOf (value, schema, root, path) {
  if (schema.$ref) return problemOf(value, root.$defs[schema.$ref.split('/').at(-1)], root, path)
  if (schema.anyOf) {
    const problems = schema.anyOf.map(one => problemOf(value, one, root, path))
    return problems.includes('') ? '' : problems[0]
  }
  if (schema.type && schema.type !== typeOf(value)) return `${path} is no ${schema.type}`
  if (schema.pattern && !new RegExp(schema.pattern, 'u').test(value)) return `${path} is not like ${schema.pattern}`
  if (schema.minimum !== undefined && value < BigInt(schema.minimum)) return `${path} is too small`
  if (Array.isArray(value)) return firstProblem(value.entries(), schema, () => schema.items, root, path)
  if (!isObject(value)) return ''
  const missing = (schema.required ?? []).find(key => !(key in value))
  if (missing !== undefined) return `${path}.${missing} is missing`
  const others = isObject(schema.additionalProperties) ? schema.additionalProperties : undefined
  const own = schema.properties ?? {}
  return firstProblem(Object.entries(value), schema, key => Object.hasOwn(own, key) ? own[key] : others, root, path)
}

function firstProblem (entries, schema, schemaOf, root, path) {
  for (const [key, inner] of entries) {
    const of = schemaOf(key)
    const problem = of ? problemOf(inner, of, root, `${path}.${key}`) : ''
    if (problem) return problem
  }
  return ''
}

function typeOf (value) {
  if (value === null) return 'null'
  if (Array.isArray(value)) return 'array'
  return { string: 'string', bigint: 'integer', number: 'number', boolean: 'boolean' }[typeof value] ?? 'object'
}
