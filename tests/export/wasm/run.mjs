// Runs an ONNX file in onnxruntime-web (WebAssembly): node run.mjs FOLDER, where FOLDER/request.json says what to run.
import fs from 'node:fs'
import * as ort from 'onnxruntime-web'

const folder = process.argv[2]
const request = JSON.parse(fs.readFileSync(`${folder}/request.json`))
const kinds = { float32: Float32Array, uint8: Uint8Array, int8: Int8Array }
ort.env.wasm.numThreads = 1
ort.env.logLevel = 'error'
const session = await ort.InferenceSession.create(`${folder}/model.onnx`, { executionProviders: ['wasm'] })
const feeds = {}
request.inputs.forEach(({ name, type, dims }, i) => {
  const bytes = fs.readFileSync(`${folder}/in${i}.bin`)
  const copy = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength)
  feeds[name] = new ort.Tensor(type, new kinds[type](copy), dims)
})
const results = await session.run(feeds, request.outputs)
const answer = request.outputs.map((name, i) => {
  const { data, dims, type } = results[name]
  fs.writeFileSync(`${folder}/out${i}.bin`, Buffer.from(data.buffer, data.byteOffset, data.byteLength))
  return { type, dims }
})
fs.writeFileSync(`${folder}/answer.json`, JSON.stringify(answer))
