// What breaks a rule. Section "Findings".

/** One rule broken in one place: ends the step that it is thrown in. */
export class Broken extends Error {
  constructor (code, place, message) {
    super(`${code} ${place}: ${message}`)
    this.code = code
    this.place = place
  }
}

/** All that was found; the places of MUSTs are passed over by later steps. */
export class Findings {
  list = []

  add (code, place, message) {
    this.list.push(new Broken(code, place, message))
  }

  /** Runs a step; what it throws of `Broken` is a finding. Tells whether it went through. */
  async of (step) {
    try {
      await step()
      return true
    } catch (error) {
      if (!(error instanceof Broken)) throw error
      this.list.push(error)
      return false
    }
  }

  get codes () {
    return [...new Set(this.list.map(finding => finding.code))].sort()
  }

  get brokenPlaces () {
    return new Set(this.list.filter(finding => finding.code[0] === 'E').map(finding => finding.place))
  }
}
