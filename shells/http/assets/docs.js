"use strict";
const el = (tag, text, ...children) => {
  const element = document.createElement(tag);
  if (text) element.textContent = text.replaceAll("`", "");
  element.append(...children);
  return element;
};
/** The fields of an object, also of the objects within it: path, description, whether needed. */
const fields = (api, schema) => {
  if (schema.$ref) return fields(api, api.components.schemas[schema.$ref.split("/").pop()]);
  if (schema.items) return fields(api, schema.items).map(([name, ...more]) => [`[].${name}`, ...more]);
  const parts = [...(schema.allOf || []), ...(schema.oneOf || [])].flatMap((part) => fields(api, part));
  const own = Object.entries(schema.properties || {}).flatMap(([name, about]) => [
    [name, about.description || "", (schema.required || []).includes(name)],
    ...fields(api, about).map(([inner, ...more]) => [`${name}${inner.startsWith("[") ? "" : "."}${inner}`, ...more]),
  ]);
  return [...parts, ...own];
};
(async () => {
  const place = document.getElementById("paths");
  const answer = await fetch("/openapi.json");
  if (answer.status === 401) {
    location.replace("/console/login");
    return;
  }
  const api = await answer.json();
  const sections = [];
  for (const [path, item] of Object.entries(api.paths)) {
    for (const [method, operation] of Object.entries(item)) {
      const section = el("section");
      section.className = "card";
      section.append(el("h2", `${method.toUpperCase()} ${path}`));
      section.append(el("p", operation.summary || operation.description || ""));
      const rows = el("dl");
      for (const parameter of operation.parameters || []) {
        rows.append(el("dt", `${parameter.name} (${parameter.in})`), el("dd", parameter.description || ""));
      }
      if (operation.requestBody) {
        const schema = operation.requestBody.content["application/json"].schema;
        for (const [field, about, needed] of fields(api, schema)) {
          rows.append(el("dt", `${field} (body${needed ? "" : ", optional"})`), el("dd", about));
        }
      }
      for (const [status, response] of Object.entries(operation.responses)) {
        rows.append(el("dt", status), el("dd", response.description));
        const content = (response.content || {})["application/json"];
        if (status.startsWith("2") && content) {
          const all = fields(api, content.schema);
          for (const [field, about] of all) rows.append(el("dt", `  ${field}`), el("dd", about));
        }
      }
      section.append(rows);
      const schemes = (operation.security || []).flatMap((scheme) => Object.keys(scheme));
      section.append(el("p", schemes.length ? `Bearer token: ${schemes.join(" or ")}` : "Open"));
      section.lastChild.className = "quiet";
      sections.push(section);
    }
  }
  place.replaceChildren(...sections);
})();
